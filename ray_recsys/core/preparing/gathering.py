"""Rows from blocks of the log to partitions of users."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_recsys.config import InputRecipe
from ray_recsys.core.arrays import Bools, Int32s, Int64s
from ray_recsys.core.exchange import Exchange, Handle, drain
from ray_recsys.core.preparing.blocks import Block
from ray_recsys.core.preparing.checking import MAX_EXAMPLES, cast_ids
from ray_recsys.core.preparing.ids import ranked
from ray_recsys.core.preparing.rows import UserRows

if TYPE_CHECKING:
    from ray_recsys.core.preparing.settling import PartitionPlan

MAX_PARTS = 1 << 17
"""Parts of an exchange: the driver holds a reference of 1.8 kB on each."""


def redistribute(
    blocks: list[Handle], codes: list[Handle], bucket_bounds: Sequence[int], num_bytes: int, exchange: Exchange
) -> list[list[Handle | None]]:
    """Returns the inputs of each partition: of each block, a block that has its rows, and the codes of its items.

    Where all tasks reach all blocks, a partition's input is the blocks themselves. Otherwise they are cut, one task per
    block, into parts for as many groups of partitions as there may be parts; the codes are then applied already.

    Args:
        blocks: Of the log; the list is emptied.
        codes: Of each block, the log's codes of its items; the list is emptied.
        bucket_bounds: First hash bucket of each partition and, last, the end.
        num_bytes: Of all blocks.
        exchange: Runs the tasks.
    """
    num_partitions = len(bucket_bounds) - 1
    if exchange.shares_memory(num_bytes):
        pairs = [handle for pair in zip(drain(blocks), drain(codes), strict=True) for handle in pair]
        return [pairs] * num_partitions
    num_groups = min(num_partitions, max(1, MAX_PARTS // len(blocks)))
    first = [group * num_partitions // num_groups for group in range(num_groups + 1)]
    bounds = [bucket_bounds[partition] for partition in first]
    inputs = zip(drain(blocks), drain(codes), strict=True)
    left = exchange.run(partial(_cut, bounds), inputs, num_groups, stage="redistributing rows by user")
    groups = [[handle for block in left for handle in (block.parts[group], None)] for group in range(num_groups)]
    sizes = np.diff(first)
    return [groups[group] for group in np.repeat(np.arange(num_groups), sizes)]


def _cut(bounds: Sequence[int], _number: int, block: Block, codes: Int32s) -> tuple[None, Sequence[Any]]:
    return None, [block.cut(first, end, codes) for first, end in pairwise(bounds)]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Rows of a partition from all blocks."""

    rows: UserRows
    users: pa.Array
    """Distinct ids, in order; a robot's is among them."""
    num_robot_rows: int
    """Dropped rows of users with more rows than the recipe allows."""
    robot_examples: UserRows


@dataclass(frozen=True, slots=True)
class _Part:
    """A block's rows of a partition; views of the block's arrays."""

    block: Block
    item_codes: Int32s | None
    rank: Int32s
    """Rank of each of the block's users among the partition's."""

    def rows(self, mask: Bools | Int64s | None, time_unit_us: int) -> UserRows:
        columns: dict[str, Any] = dict(self.block.columns)
        if mask is not None:
            columns = {name: values[mask] for name, values in columns.items()}
        columns["user"] = self.rank[columns["user"]]
        if self.item_codes is not None:
            columns["item"] = self.item_codes[columns["item"]]
        time_us = columns.pop("time_us", None)
        time = time_us if time_us is None or time_unit_us == 1 else time_us // time_unit_us
        return UserRows(**columns, time=time)


def collect(plan: "PartitionPlan", partition: int, blocks: Sequence[Any]) -> Gathered:
    """Returns a partition's rows without those of robots: users with more than `prepare.max_interactions_per_user`.

    A robot's rows are counted and dropped where they are, so a partition takes memory for its other users alone.

    Args:
        plan: What all partitions share.
        partition: Which partition.
        blocks: From `redistribute`: block, codes of its items or None, block, codes or None, …
    """
    first, end = plan.bucket_bounds[partition], plan.bucket_bounds[partition + 1]
    pairs = [(block.cut(first, end, None), codes) for block, codes in zip(blocks[::2], blocks[1::2], strict=True)]
    pairs = [(block, codes) for block, codes in pairs if len(block.users)]
    ids = [cast_ids(block.users.array(), plan.user_kind) for block, _ in pairs]
    rank, users = ranked(pa.concat_arrays([cast_ids(pa.array([], pa.string()), plan.user_kind), *ids]))
    ranks = np.split(rank.astype(np.int32), np.cumsum([len(of_block) for of_block in ids])[:-1])
    parts = [_Part(block, codes, of_block) for (block, codes), of_block in zip(pairs, ranks, strict=False)]
    is_robot = _are_robots(parts, len(users), plan.rules.max_interactions_per_user)
    if not is_robot.any():
        rows = [part.rows(None, plan.time_unit_us) for part in parts]
        return Gathered(_concatenate(rows, plan.input), users, 0, _concatenate([], plan.input))
    kept, examples, num_dropped = [], [], 0
    for part in parts:
        mask = is_robot[part.rank][part.block.columns["user"]]
        num_dropped += int(np.count_nonzero(mask))
        kept.append(part.rows(~mask, plan.time_unit_us))
        examples.append(part.rows(np.flatnonzero(mask)[:MAX_EXAMPLES], plan.time_unit_us))
    return Gathered(
        _concatenate(kept, plan.input),
        users,
        num_dropped,
        _concatenate(examples, plan.input).take(slice(MAX_EXAMPLES)),
    )


def _are_robots(parts: Sequence[_Part], num_users: int, max_rows: int) -> Bools:
    num_rows = np.zeros(num_users, np.int64)
    if sum(len(part.block.columns["user"]) for part in parts) > max_rows:
        for part in parts:
            num_rows[part.rank] += np.bincount(part.block.columns["user"], minlength=len(part.rank))
    return num_rows > max_rows


def _concatenate(parts: Sequence[UserRows], recipe: InputRecipe) -> UserRows:
    columns = [part.columns() for part in parts]
    if columns:
        return UserRows(**{name: np.concatenate([part[name] for part in columns]) for name in columns[0]})
    return UserRows(
        user=np.zeros(0, np.int32),
        item=np.zeros(0, np.int32),
        time=None if recipe.timestamp_column is None else np.zeros(0, np.int64),
        rating=None if recipe.rating_column is None else np.zeros(0, np.float32),
    )
