"""Second pass of prepare: partitions of users go through steps; each outputs the rows of the next.

gather (rows of every block → deduplicated) → filter (any number of rounds) → label (the split). A step is a pure
function of the previous step's output; partitions share nothing but the item counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_recsys.config import InputRecipe, PrepareRecipe, SplitRecipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.exchange import Exchange, Handle, Left, drain
from ray_recsys.core.preparing.blocks import Block
from ray_recsys.core.preparing.checking import MAX_EXAMPLES, DropLog, Example, IdKind
from ray_recsys.core.preparing.counting import ItemTotals, are_common, count_items, num_ranges, sum_counts
from ray_recsys.core.preparing.gathering import collect
from ray_recsys.core.preparing.ids import PackedIds
from ray_recsys.core.preparing.items import LogItems
from ray_recsys.core.preparing.rows import UserRows, deduplicate, filter_rows, in_time_order
from ray_recsys.core.preparing.splits import global_time, label_rows
from ray_recsys.core.preparing.timestamps import MICROSECONDS

STAGE = "deduplicating, filtering and splitting"


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """Inputs that the steps of all partitions share."""

    bucket_bounds: Sequence[int]
    """First hash bucket of each partition and, last, the end."""
    user_kind: IdKind
    num_items: int
    """Of the log."""
    time_unit_us: int
    cuts: tuple[int, int] | None
    """First moments of validation and test in the log's time unit; None unless the split is by time."""
    input: InputRecipe
    rules: PrepareRecipe
    split: SplitRecipe
    seed: int

    @property
    def num_partitions(self) -> int:
        """Number of partitions of users."""
        return len(self.bucket_bounds) - 1

    def describe(self, partition: int) -> str:
        """Returns a description of a partition, for errors."""
        return f"partition {partition} of the users"


@dataclass(frozen=True, slots=True)
class StepReport:
    """Summary of a partition after a step."""

    num_rows: int
    num_users: int
    """Users with training rows."""
    num_new_users: int
    """Users with held-out rows only."""
    drops: DropLog
    is_changed: bool = True
    """Whether the step left other rows than it was given."""


@dataclass(slots=True)
class SettledRows:
    """The interactions that are left after deduplication, filters and split."""

    reports: list[StepReport]
    """Of each partition."""
    users: list[Handle]
    """Of each partition, the ids of its users, in order; some may have lost all their rows."""
    rows: list[Handle]
    totals: ItemTotals
    drops: DropLog
    """Of all steps."""

    @property
    def num_rows(self) -> int:
        """Number of interactions."""
        return sum(report.num_rows for report in self.reports)


def settle_rows(
    plan: PartitionPlan, inputs: list[list[Handle | None]], items: LogItems, exchange: Exchange
) -> SettledRows:
    """Deduplicates, filters and splits the rows, one task per partition and step.

    Args:
        plan: What all partitions share.
        inputs: Of each partition, from `gathering.redistribute`; the list is emptied.
        items: Of the log.
        exchange: Runs the tasks.
    """
    rules, num_counts = plan.rules, num_ranges(plan.num_items)
    is_filtered = rules.min_interactions_per_item > 1 or rules.min_interactions_per_user > 1
    is_core = is_filtered and rules.filter == "k_core"

    def sum_up(counts: Sequence[Sequence[Handle]], minuend: ItemTotals | None = None) -> ItemTotals:
        return sum_counts(counts, plan.num_items, rules.min_interactions_per_item, exchange, minuend=minuend)

    step = partial(gather, plan, is_last=not is_filtered)
    gathered = ([items.ids, *of_partition] for of_partition in drain(inputs))
    left = exchange.run(step, gathered, 2 + num_counts, stage=STAGE, describe=plan.describe)
    settled = SettledRows(
        reports=[part.report for part in left],
        users=[part.parts[0] for part in left],
        rows=[part.parts[1] for part in left],
        totals=sum_up([part.parts[2:] for part in left]),
        drops=DropLog.merged(part.report.drops for part in left),
    )
    is_first = True
    while is_filtered:
        step = partial(filter_step, plan, is_first=is_first, is_last=not is_core)
        given = _inputs(settled, items, settled.totals.ranges)
        left = exchange.run(step, given, 1 + num_counts, stage=STAGE, describe=plan.describe)
        _update(settled, left)
        changed = [part.parts[1:] for part in left if part.report.is_changed]
        settled.totals = sum_up(changed, settled.totals if is_core else None)
        is_first, is_filtered = False, is_core and settled.totals.summary.num_rare > 0
    if is_core:
        given = _inputs(settled, items, [])
        left = exchange.run(partial(label, plan), given, 1 + num_counts, stage=STAGE, describe=plan.describe)
        _update(settled, left)
        settled.totals = sum_up([part.parts[1:] for part in left])
    return settled


def _inputs(settled: SettledRows, items: LogItems, more: Sequence[Handle]) -> list[list[Handle | None]]:
    return [[items.ids, users, rows, *more] for users, rows in zip(settled.users, settled.rows, strict=True)]


def _update(settled: SettledRows, left: Sequence[Left[StepReport]]) -> None:
    settled.drops.merge(DropLog.merged(part.report.drops for part in left))
    settled.reports = [part.report for part in left]
    settled.rows = [
        part.parts[0] if part.report.is_changed else before for part, before in zip(left, settled.rows, strict=True)
    ]


def gather(
    plan: PartitionPlan,
    partition: int,
    item_ids: PackedIds,
    *blocks: Block | Int32s | None,
    is_last: bool,
) -> tuple[StepReport, Sequence[Any]]:
    """Collects a partition's rows from all blocks, deduplicates them and applies the minimum rating.

    Args:
        plan: What all partitions share.
        partition: Which partition.
        item_ids: Ids of all items, in order of codes.
        blocks: See `gathering.collect`.
        is_last: Whether no filter follows, so that the rows can be split at once.

    Returns:
        A report, and (ids of the users, rows, item counts of each range).
    """
    gathered = collect(plan, partition, blocks)
    rows, users = gathered.rows, PackedIds.of(gathered.users)
    if plan.cuts is not None:
        assert rows.time is not None
        rows = replace(rows, label=global_time(rows.time, *plan.cuts))
    rows, duplicates = deduplicate(rows, plan.rules.deduplicate)
    dropped = dict(duplicates)
    if plan.split.method == "given" and "repeated_after_cut" in dropped:
        dropped["test_pair_in_training"] = dropped.pop("repeated_after_cut")
    if plan.rules.min_rating is not None and rows.rating is not None:
        is_low = rows.rating < plan.rules.min_rating
        dropped["below_min_rating"] = rows.take(is_low)
        rows = rows.take(~is_low)
    rows = in_time_order(rows)
    if is_last:
        rows = _labelled(plan, rows, users, item_ids)
    report = _report(plan, rows, users, item_ids, dropped)
    robots = _examples(plan.time_unit_us, users, item_ids, gathered.robot_examples)
    report.drops.add("robot", gathered.num_robot_rows, robots)
    return report, (users, rows.stored(), *_counts(plan, rows))


def filter_step(
    plan: PartitionPlan,
    _partition: int,
    item_ids: PackedIds,
    users: PackedIds,
    rows: UserRows,
    *totals: Int64s,
    is_first: bool,
    is_last: bool,
) -> tuple[StepReport, Sequence[Any]]:
    """Applies one round of the filters to the rows of the step before.

    After the first round, rows change only where an item has become rare since. Outputs the rows and, after the last
    round, the item counts; before, those of the dropped rows.
    """
    is_kept_item = are_common(totals, plan.rules.min_interactions_per_item)
    if not is_first and bool((is_kept_item[rows.item] | ~rows.is_training()).all()):
        unchanged = replace(_report(plan, rows, users, item_ids, {}), is_changed=False)
        return unchanged, (None,) * (1 + num_ranges(plan.num_items))
    rows, dropped = filter_rows(rows, len(users), is_kept_item, plan.rules.min_interactions_per_user)
    if is_last:
        rows = _labelled(plan, rows, users, item_ids)
        counts = _counts(plan, rows)
    else:
        lost = np.concatenate([np.zeros(0, np.int32), *(of_reason.item for of_reason in dropped.values())])
        counts = count_items(lost, np.ones(len(lost), np.bool_), plan.num_items)
    return _report(plan, rows, users, item_ids, dropped), (rows.stored(), *counts)


def label(
    plan: PartitionPlan,
    _partition: int,
    item_ids: PackedIds,
    users: PackedIds,
    rows: UserRows,
) -> tuple[StepReport, Sequence[Any]]:
    """Splits the rows of the previous step; outputs them and the item counts."""
    rows = _labelled(plan, rows, users, item_ids)
    return _report(plan, rows, users, item_ids, {}), (rows.stored(), *_counts(plan, rows))


def _counts(plan: PartitionPlan, rows: UserRows) -> list[Int32s]:
    return count_items(rows.item, rows.is_training(), plan.num_items)


def _labelled(plan: PartitionPlan, rows: UserRows, users: PackedIds, item_ids: PackedIds) -> UserRows:
    if rows.label is not None and plan.split.method != "given":
        return rows
    return replace(rows, label=label_rows(rows, users.array(), item_ids.array(), plan.split, plan.seed))


def _report(
    plan: PartitionPlan, rows: UserRows, users: PackedIds, item_ids: PackedIds, dropped: Mapping[str, UserRows]
) -> StepReport:
    is_training = rows.is_training()
    has_training = np.zeros(len(users), np.bool_)
    has_training[rows.user[is_training]] = True
    has_held_out = np.zeros(len(users), np.bool_)
    has_held_out[rows.user[~is_training]] = True
    return StepReport(
        num_rows=len(rows),
        num_users=int(has_training.sum()),
        num_new_users=int((has_held_out & ~has_training).sum()),
        drops=log_drops(plan.time_unit_us, users, item_ids, dropped),
    )


def log_drops(time_unit_us: int, users: PackedIds, item_ids: PackedIds, dropped: Mapping[str, UserRows]) -> DropLog:
    """Returns a log of a partition's dropped rows, with their original ids."""
    drops = DropLog()
    for reason, rows in dropped.items():
        drops.add(reason, len(rows), _examples(time_unit_us, users, item_ids, rows.take(slice(MAX_EXAMPLES))))
    return drops


def _examples(time_unit_us: int, users: PackedIds, item_ids: PackedIds, rows: UserRows) -> list[Example]:
    columns: dict[str, list[Any]] = {
        "user_id": users.array().take(pa.array(rows.user, pa.int64())).to_pylist(),
        "item_id": item_ids.array().take(pa.array(rows.item, pa.int64())).to_pylist(),
    }
    if rows.time is not None:
        columns["timestamp_s"] = (rows.time * time_unit_us // MICROSECONDS).tolist()
    if rows.rating is not None:
        columns["rating"] = rows.rating.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
