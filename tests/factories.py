"""Small prepared sets, made without Ray."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.prepared_sets import write_set
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import PreparedSet, write_partition, write_prepared_manifest


def write_log(path: Path) -> None:
    """Writes 60 users with 12 of 30 items each, in order of time."""
    rng = np.random.default_rng(0)
    rows = [
        (f"user-{user:02d}", f"item-{item:02d}", 1_000_000 + 100 * user + position)
        for user in range(60)
        for position, item in enumerate(rng.permutation(30)[:12])
    ]
    names = ("user_id", "item_id", "timestamp")
    pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)


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
    lengths = np.minimum(rng.integers(5, 15, num_users), num_items - 1)
    weights = 1.0 / (1.0 + np.arange(num_items))  # popular items are drawn more often
    weights /= weights.sum()
    items = [rng.choice(num_items, size=int(n), replace=False, p=weights) for n in lengths]
    counts = np.bincount(np.concatenate([i[:-2] for i in items]), minlength=num_items)
    order = np.argsort(-counts, kind="stable")
    index_of = np.argsort(order)
    items = [index_of[i] for i in items]

    def histories(users: Int64s) -> Histories:
        return Histories(
            int(users[0]) if len(users) else 0,
            _part([items[u][:-2] for u in users], 0, has_ratings=has_ratings),
            _part([items[u][-2:-1] for u in users], 1_000_000, has_ratings=has_ratings),
            _part([items[u][-1:] for u in users], 2_000_000, has_ratings=has_ratings),
        )

    def ids(idx: Int64s, text: str) -> pa.Array:
        return pa.array([text.format(i) for i in idx] if first_id is None else first_id + idx)

    return write_set(
        path,
        (histories(users) for users in np.array_split(np.arange(num_users), num_partitions)),
        num_items,
        item_columns={"item_id": ids(order, "item-{:04d}"), "title": [f"Title {i}" for i in order]},
        user_ids=lambda user_idx: ids(user_idx, "user-{:05d}"),
        split={"method": "leave_one_out"},
    )


def rewrite_partitions(
    prepared: PreparedSet, change: Callable[[Histories], Histories], *partitions: int, **manifest_changes: object
) -> PreparedSet:
    """Returns the set with some (or all) partitions' histories changed and the manifest signed again."""
    infos = list(prepared.manifest.partitions)
    for partition in partitions or range(len(infos)):
        ids = prepared.read_user_ids(partition).combine_chunks()
        infos[partition], _ = write_partition(prepared.path, partition, change(prepared.read_partition(partition)), ids)
    changes = {"partitions": tuple(infos), **manifest_changes}
    write_prepared_manifest(prepared.path, prepared.manifest.model_copy(update=changes), {})
    return PreparedSet.open(prepared.path)


def rewrite_manifest(prepared: PreparedSet, **changes: object) -> PreparedSet:
    """Returns the set with other values in its manifest, signed again."""
    write_prepared_manifest(prepared.path, prepared.manifest.model_copy(update=changes), {})
    return PreparedSet.open(prepared.path)


def replace_user_ids(prepared: PreparedSet, partition: int, ids: list[str | None]) -> PreparedSet:
    """Returns the set with other ids of a partition's users and the manifest signed again."""
    path = prepared.path / prepared.manifest.partitions[partition].file
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "user_id", pa.array(ids, pa.string())), path)
    write_prepared_manifest(prepared.path, prepared.manifest, {})
    return PreparedSet.open(prepared.path)


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
