"""Prepared sets made of given histories, without `prepare`; for benchmarks and tests."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.artifact_writer import atomic_directory
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import ITEMS, PreparedManifest, PreparedSet, write_partition, write_prepared_manifest


def histories_of(first_user_idx: int, offsets: Int64s, items: Int32s) -> Histories:
    """Returns histories of training interactions alone."""
    nothing = Interactions(np.zeros_like(offsets), items[:0])
    return Histories(first_user_idx, Interactions(offsets, items), nothing, nothing)


def indices_as_text(idx: Int64s) -> pa.Array:
    """Returns indices as the ids `0`, `1`, and so on."""
    return pa.array(idx.astype(str))


def write_set(
    path: Path,
    partitions: Iterable[Histories],
    num_items: int,
    *,
    item_columns: Mapping[str, pa.Array] | None = None,
    user_ids: Callable[[Int64s], pa.Array] = indices_as_text,
    split: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
) -> PreparedSet:
    """Writes a prepared set with one file per partition.

    Args:
        path: Its directory.
        partitions: Users with consecutive indices, held one partition at a time.
        num_items: Number of items.
        item_columns: `item_id` and further columns of the item table; None: ids are the indices as text.
        user_ids: Returns the ids of user indices.
        split: Of the manifest.
        recipe: Of the manifest; None: all defaults.
    """
    infos, digests, counts = [], {}, np.zeros(num_items, np.int64)
    with atomic_directory(path) as staging:
        for partition, histories in enumerate(partitions):
            counts += np.bincount(histories.training.item_idx, minlength=num_items)
            info, digest = write_partition(staging, partition, histories, user_ids(histories.user_idx))
            infos.append(info)
            digests[info.file] = digest
        item_idx = np.arange(num_items)
        columns = item_columns or {"item_id": indices_as_text(item_idx)}
        pq.write_table(
            pa.table({"item_idx": pa.array(item_idx, pa.int32()), **columns, "count": counts}), staging / ITEMS
        )
        totals = {
            name: sum(getattr(info, name) for info in infos)
            for name in ("num_users", "num_training", "num_validation", "num_test")
        }
        num_rows = sum(totals.values()) - totals["num_users"]
        manifest = PreparedManifest(
            created_at="2026-01-01T00:00:00+00:00", rows_in=num_rows, rows_kept=num_rows, rows_dropped={},
            num_items=num_items, split=dict(split or {}), input_fingerprint="made up", recipe=recipe or Recipe(),
            partitions=tuple(infos), **totals,
        )  # fmt: skip
        write_prepared_manifest(staging, manifest, digests)
    return PreparedSet.open(path)
