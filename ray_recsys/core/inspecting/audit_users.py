"""Audit of where users are: one partition each, although no process sees all users.

A user's partition follows from the hash of the id, so that an id in two partitions is out of place in one of them: each
partition tells its ids out of place, and only those are looked for elsewhere.
"""

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Int64s
from ray_recsys.core.inspecting.audit import Finding, find
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.id_hash import bucket_of, hash_ids, partition_bounds


def home_partitions(user_ids: pa.Array, num_partitions: int) -> Int64s:
    """Returns the partition that each id belongs to, int64[U]; no id is null."""
    places: Int64s = np.searchsorted(partition_bounds(num_partitions), bucket_of(hash_ids(user_ids)), side="right") - 1
    return places


def misplaced_users(user_ids: pa.Array, partition: int, num_partitions: int) -> pa.Array:
    """Returns the ids of a partition that belong to another."""
    known = user_ids.drop_null().unique()
    return known.filter(pa.array(home_partitions(known, num_partitions) != partition))


def audit_user_partitions(prepared: PreparedSet, misplaced: Mapping[int, pa.Array]) -> list[Finding]:
    """Checks that no id is in two partitions; reads the ids of partitions where one may be met again.

    Args:
        prepared: The prepared set.
        misplaced: Ids out of place by the partition that holds them, of every partition that can be read.
    """
    num_partitions = len(prepared.manifest.partitions)
    holders = Counter(user_id for ids in misplaced.values() for user_id in ids.to_pylist())
    homes: dict[int, list[object]] = {}
    for ids in misplaced.values():
        for home, user_id in zip(home_partitions(ids, num_partitions).tolist(), ids.to_pylist(), strict=True):
            homes.setdefault(home, []).append(user_id)
    for home in homes.keys() & misplaced.keys():
        ids = prepared.read_user_ids(home)
        holders.update(ids.filter(pc.is_in(ids, pa.array(homes[home], ids.type))).unique().to_pylist())
    repeated = sorted((str(user_id), count) for user_id, count in holders.items() if count > 1)
    return find(
        "user ids in more than one partition",
        np.arange(len(repeated)),
        lambda i: f"user_id {repeated[i][0]!r} in {repeated[i][1]} partitions",
    )
