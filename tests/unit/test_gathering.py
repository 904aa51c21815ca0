"""A partition gets exactly the rows of its users, whatever the blocks, and none of a robot's."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import InputRecipe, PrepareRecipe, SplitRecipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.preparing.blocks import pack_block
from ray_recsys.core.preparing.checking import check_rows
from ray_recsys.core.preparing.gathering import collect, redistribute
from ray_recsys.core.preparing.ids import bucket_of, hash_ids, partition_bounds
from ray_recsys.core.preparing.items import find_items
from ray_recsys.core.preparing.settling import PartitionPlan
from tests.executors import EXECUTOR

BLOCKS = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=20),
    min_size=1,
    max_size=4,
)
Row = tuple[int, int, int]


def plan_of(num_partitions: int, max_interactions: int) -> PartitionPlan:
    rules = PrepareRecipe(max_interactions_per_user=max_interactions)
    bounds = partition_bounds(num_partitions)
    return PartitionPlan(bounds, "integer", 6, 1_000_000, None, InputRecipe(), rules, SplitRecipe(), 0)


def gather_all(blocks: list[list[Row]], executor: SerialExecutor, plan: PartitionPlan) -> list[tuple[set[int], Any]]:
    """Returns of each partition (the users of its buckets, what was gathered)."""
    packed = []
    for rows in blocks:
        users, items, times = (list(column) for column in zip(*rows, strict=True))
        table = pa.table({"user_id": users, "item_id": items, "timestamp": times})
        packed.append(pack_block(check_rows(table, InputRecipe(), is_text_file=False, source="test")))
    items_of_log = find_items([parts[1:] for parts in packed], "integer", executor)
    inputs = redistribute([parts[0] for parts in packed], items_of_log.codes, plan.bucket_bounds, 1, executor)
    gathered = [collect(plan, partition, values) for partition, values in enumerate(inputs)]
    partition_of = np.searchsorted(plan.bucket_bounds, bucket_of(hash_ids(pa.array(range(10)))), side="right") - 1
    members = [set(np.flatnonzero(partition_of == number).tolist()) for number in range(plan.num_partitions)]
    return list(zip(members, gathered, strict=True))


@pytest.mark.parametrize("executor", [SerialExecutor(), EXECUTOR])
@pytest.mark.parametrize("max_parts", [1, 1 << 17])
@given(BLOCKS, st.integers(1, 5), st.sampled_from([3, 1_000]))
def test_each_partition_gets_its_users_rows_without_robots(
    executor: SerialExecutor, max_parts: int, blocks: list[list[Row]], num_partitions: int, max_interactions: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_recsys.core.preparing.gathering.MAX_PARTS", max_parts)
        found = gather_all(blocks, executor, plan_of(num_partitions, max_interactions))
    rows = [row for block in blocks for row in block]
    items = sorted({item for _, item, _ in rows})
    per_user = np.bincount([user for user, _, _ in rows], minlength=10)
    for members, gathered in found:
        of_partition = [row for row in rows if row[0] in members]
        users = gathered.users.to_pylist()
        assert users == sorted({user for user, _, _ in of_partition})
        kept = gathered.rows
        triples = [
            (users[user], items[item], int(time))
            for user, item, time in zip(kept.user, kept.item, kept.time, strict=True)
        ]
        assert sorted(triples) == sorted(row for row in of_partition if per_user[row[0]] <= max_interactions)
        of_robots = [row for row in of_partition if per_user[row[0]] > max_interactions]
        assert gathered.num_robot_rows == len(of_robots)
        assert {users[user] for user in gathered.robot_examples.user} == {user for user, _, _ in of_robots}
