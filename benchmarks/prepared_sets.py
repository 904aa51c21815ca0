"""Prepared sets made of given histories, without `prepare`."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.artifact import atomic_directory
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import ITEMS, PreparedManifest, PreparedSet, write_partition, write_prepared_manifest


def histories_of(first_user_idx: int, offsets: Int64s, items: Int32s) -> Histories:
    """Returns histories of training interactions alone."""
    nothing = Interactions(np.zeros_like(offsets), items[:0])
    return Histories(first_user_idx, Interactions(offsets, items), nothing, nothing)


def write_set(path: Path, partitions: Iterable[Histories], num_items: int) -> PreparedSet:
    """Writes a prepared set, a file a partition; ids are the indices as text."""
    infos, digests, counts, num_users = [], {}, np.zeros(num_items, np.int64), 0
    with atomic_directory(path) as staging:
        for place, histories in enumerate(partitions):
            counts += np.bincount(histories.training.item_idx, minlength=num_items)
            info, digest = write_partition(staging, place, histories, pa.array(histories.user_idx.astype(str)))
            infos.append(info)
            digests[info.file] = digest
            num_users += info.num_users
        items = np.arange(num_items)
        table = pa.table({"item_idx": items.astype(np.int32), "item_id": items.astype(str), "count": counts})
        pq.write_table(table, staging / ITEMS)
        total = int(counts.sum())
        manifest = PreparedManifest(
            created_at="", rows_in=total, rows_kept=total, rows_dropped={}, num_users=num_users, num_items=num_items,
            num_training=total, num_validation=0, num_test=0, split={}, input_fingerprint="benchmark", recipe=Recipe(),
            partitions=tuple(infos),
        )  # fmt: skip
        write_prepared_manifest(staging, manifest, digests)
    return PreparedSet.open(path)
