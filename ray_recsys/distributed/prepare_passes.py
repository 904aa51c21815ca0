"""The passes of `prepare` over the cluster: one task per chunk, block or partition, a few numbers back from each.

What a task does is in `scatter`, `partition_steps` and `partition_writer` of `core.preparing`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.preparing.drops import DropLog
from ray_recsys.core.preparing.interactions import IdKind, merge_kinds
from ray_recsys.core.preparing.log_reader import LogChunk
from ray_recsys.core.preparing.partition_steps import (
    PartitionPlan,
    StepReport,
    filter_step,
    gather,
    label_step,
    sum_item_counts,
)
from ray_recsys.core.preparing.partition_writer import FinalIndices, WriteReport, write_users
from ray_recsys.core.preparing.prepare_summary import SettledRows
from ray_recsys.core.preparing.scatter import ChunkReport, scatter_chunk
from ray_recsys.core.preparing.splits import count_block_times, cuts_from_fractions
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.distributed.executor import run_tasks


@dataclass(frozen=True, slots=True)
class StagedLog:
    """What the first pass left in the staging folder."""

    rows_in: int
    rows_kept: int
    blocks: Sequence[str]
    user_kind: IdKind
    item_kind: IdKind
    time_unit_us: int
    time_range_us: tuple[int, int] | None
    drops: DropLog


def stage_log(chunks: Sequence[LogChunk], recipe: Recipe, staging: Path) -> StagedLog:
    """Reads and checks the chunks of a log, one task each.

    Raises:
        DataError: A damaged file or a column of an impossible type.
    """
    staging.mkdir()
    task = partial(_scatter, chunks, recipe, staging)
    by_chunk = dict(run_tasks(task, len(chunks), stage=f"reading the log into {staging}"))
    reports = [by_chunk[number] for number in range(len(chunks))]
    drops = DropLog()
    for report in reports:
        drops.merge(report.drops)
    ranges = [report.time_range_us for report in reports if report.time_range_us is not None]
    return StagedLog(
        rows_in=sum(report.rows_in for report in reports),
        rows_kept=sum(report.rows_kept for report in reports),
        blocks=[block for report in reports for block in report.blocks],
        user_kind=merge_kinds([report.user_kind for report in reports]),
        item_kind=merge_kinds([report.item_kind for report in reports]),
        time_unit_us=min((report.time_unit_us for report in reports), default=MICROSECONDS),
        time_range_us=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
        drops=drops,
    )


def find_cuts(log: StagedLog, recipe: Recipe, staging: Path) -> tuple[int, int] | None:
    """Returns the first moments of validation and test in the log's time unit; None unless the split is by time."""
    split, unit = recipe.split, log.time_unit_us
    if split.method != "global_time" or log.time_range_us is None:
        return None

    def histogram(low: int, width: int, bins: int) -> Int64s:
        stage = f"counting the times of {staging}"
        task = partial(_count_times, staging, log.blocks, (unit, low, width, bins))
        total: Int64s = np.sum(list(run_tasks(task, len(log.blocks), stage=stage)), axis=0)
        return total

    validation_from, test_from = (
        None if second is None else second * (MICROSECONDS // unit)
        for second in (split.validation_from_s, split.test_from_s)
    )
    if validation_from is None or test_from is None:
        first, last = (moment // unit for moment in log.time_range_us)
        fitted = cuts_from_fractions(histogram, (first, last), log.rows_kept, split)
        validation_from = fitted[0] if validation_from is None else validation_from
        test_from = fitted[1] if test_from is None else test_from
    return validation_from, max(validation_from, test_from)


def settle_rows(plan: PartitionPlan, num_items: int, drops: DropLog) -> SettledRows:
    """Deduplicates, filters and splits the staged rows, one task a partition and step; adds to `drops`."""
    rules = plan.recipe.prepare
    is_filtered = rules.min_interactions_per_item > 1 or rules.min_interactions_per_user > 1
    is_core = is_filtered and rules.filter == "k_core"
    step = 0
    reports = _run_step(partial(gather, is_last=not is_filtered), plan, drops)
    counts = sum_item_counts(plan, step, num_items)
    while is_filtered:
        num_rows = sum(report.num_rows for report in reports)
        is_kept_item = counts[0] >= rules.min_interactions_per_item
        step += 1
        reports = _run_step(
            partial(filter_step, step=step, is_kept_item=is_kept_item, is_last=not is_core), plan, drops
        )
        counts = sum_item_counts(plan, step, num_items)
        is_filtered = is_core and sum(report.num_rows for report in reports) < num_rows
        for path in plan.staging.glob(f"partition-*/rows-{step - 2}.arrow"):
            path.unlink()
    if is_core:
        step += 1
        reports = _run_step(partial(label_step, step=step), plan, drops)
        counts = sum_item_counts(plan, step, num_items)
    return SettledRows(
        last_step=step,
        num_rows=sum(report.num_rows for report in reports),
        num_users=[report.num_users for report in reports],
        num_new_users=sum(report.num_new_users for report in reports),
        item_counts=counts,
    )


def write_partitions(
    plan: PartitionPlan, settled: SettledRows, order: Int64s, directory: Path, drops: DropLog
) -> list[WriteReport]:
    """Writes the partitions of the prepared set, one task each; adds to `drops`.

    Args:
        plan: Of the log.
        settled: Rows whose last step is done.
        order: Item codes of the vocabulary, in order of index.
        directory: The prepared set that is being made.
        drops: Of the run.
    """
    item_idx = np.full(settled.item_counts.shape[1], -1, np.int32)
    item_idx[order] = np.arange(len(order), dtype=np.int32)
    first_user_idx = np.concatenate([[0], np.cumsum(settled.num_users)])[:-1]
    indices = FinalIndices(item_idx, first_user_idx)
    task = partial(_write, plan, indices, directory, settled.last_step)
    by_partition = dict(run_tasks(task, plan.num_partitions, stage=f"writing the partitions of {directory}"))
    reports = [by_partition[partition] for partition in range(plan.num_partitions)]
    for report in reports:
        drops.merge(report.drops)
    return reports


def _run_step(
    step: Callable[[PartitionPlan, int], StepReport], plan: PartitionPlan, drops: DropLog
) -> list[StepReport]:
    stage = f"deduplicating, filtering and splitting in {plan.staging}"
    tasks = run_tasks(partial(step, plan), plan.num_partitions, stage=stage)
    by_partition = {report.partition: report for report in tasks}
    reports = [by_partition[partition] for partition in range(plan.num_partitions)]
    for report in reports:
        drops.merge(report.drops)
    return reports


def _scatter(chunks: Sequence[LogChunk], recipe: Recipe, staging: Path, number: int) -> tuple[int, ChunkReport]:
    return number, scatter_chunk(chunks[number], number, recipe.input, staging)


def _count_times(staging: Path, blocks: Sequence[str], bins: tuple[int, int, int, int], number: int) -> Int64s:
    return count_block_times(staging / blocks[number], *bins)


def _write(
    plan: PartitionPlan, indices: FinalIndices, directory: Path, step: int, partition: int
) -> tuple[int, WriteReport]:
    return partition, write_users(plan, partition, indices, directory, step=step)
