"""Small prepared sets, made without Ray."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.artifact import atomic_directory
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import (
    ITEMS,
    PreparedManifest,
    PreparedSet,
    write_partition,
    write_prepared_manifest,
)


def random_interactions(
    rng: np.random.Generator, num_users: int, num_items: int, lengths: Int64s
) -> tuple[Int64s, list[Int64s]]:
    """Returns (offsets, distinct item indices of each user); popular items are drawn more often."""
    weights = 1.0 / (1.0 + np.arange(num_items))
    weights /= weights.sum()
    items = [rng.choice(num_items, size=int(n), replace=False, p=weights) for n in lengths[:num_users]]
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), items


def make_prepared_set(
    path: Path,
    *,
    num_users: int = 60,
    num_items: int = 40,
    num_partitions: int = 3,
    seed: int = 0,
    first_id: int | None = None,
    has_ratings: bool = False,
) -> PreparedSet:
    """Writes a leave-one-out prepared set: each user has 1 validation, 1 test and 3..12 training interactions.

    Ids are strings, or consecutive integers from `first_id`; ratings are 0.5, 1.0 .. 5.0.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 15, num_users)
    lengths = np.minimum(lengths, num_items - 1)
    _, items = random_interactions(rng, num_users, num_items, lengths)
    counts = np.bincount(np.concatenate([i[:-2] for i in items]), minlength=num_items)
    order = np.argsort(-counts, kind="stable")
    index_of = np.argsort(order)
    items = [index_of[i] for i in items]
    counts = counts[order]
    with atomic_directory(path) as staging:
        pq.write_table(
            pa.table(
                {
                    "item_idx": pa.array(np.arange(num_items), pa.int32()),
                    "item_id": [f"item-{i:04d}" if first_id is None else first_id + int(i) for i in order],
                    "count": pa.array(counts, pa.int64()),
                    "title": [f"Title {i}" for i in order],
                }
            ),
            staging / ITEMS,
        )
        partitions, digests = [], {}
        for p, users in enumerate(np.array_split(np.arange(num_users), num_partitions)):
            histories = Histories(
                int(users[0]) if len(users) else 0,
                _part([items[u][:-2] for u in users], 0, has_ratings=has_ratings),
                _part([items[u][-2:-1] for u in users], 1_000_000, has_ratings=has_ratings),
                _part([items[u][-1:] for u in users], 2_000_000, has_ratings=has_ratings),
            )
            ids = pa.array([f"user-{u:05d}" if first_id is None else first_id + int(u) for u in users])
            info, digest = write_partition(staging, p, histories, ids)
            partitions.append(info)
            digests[info.file] = digest
        num_training = int(sum(len(i) - 2 for i in items))
        manifest = PreparedManifest(
            created_at="2026-01-01T00:00:00+00:00",
            rows_in=num_training + 2 * num_users,
            rows_kept=num_training + 2 * num_users,
            rows_dropped={},
            num_users=num_users,
            num_items=num_items,
            num_training=num_training,
            num_validation=num_users,
            num_test=num_users,
            split={"method": "leave_one_out"},
            input_fingerprint="factory",
            recipe=Recipe(),
            partitions=tuple(partitions),
        )
        write_prepared_manifest(staging, manifest, digests)
    return PreparedSet.open(path)


def change_a_byte(path: Path) -> None:
    """Changes the byte in a file's middle, and nothing else."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _part(items: list[Int64s], start_s: int, *, has_ratings: bool) -> Interactions:
    lengths = np.array([len(i) for i in items], np.int64)
    flat = np.concatenate(items) if items else np.zeros(0, np.int64)
    times = np.concatenate([start_s + np.arange(n) for n in lengths]) if items else np.zeros(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ratings = (0.5 + 0.5 * ((flat + np.arange(len(flat))) % 10)).astype(np.float32) if has_ratings else None
    return Interactions(offsets, flat.astype(np.int32), times.astype(np.int64), ratings)
