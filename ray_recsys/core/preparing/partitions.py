"""Second pass of prepare: partitions of users go through steps, each of which leaves a file for the next.

gather (rows of every block → deduplicated) → filter (any number of rounds) → label (the split). A step is a function of
the files of the step before, so running it again gives the same bytes; partitions share nothing but the item counts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.config import InputRecipe, PrepareRecipe, SplitRecipe
from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.executor import Executor, map_in_order
from ray_recsys.core.files import read_arrow, write_array, write_arrow
from ray_recsys.core.preparing.checking import MAX_EXAMPLES, DropLog, Example, IdKind, cast_ids
from ray_recsys.core.preparing.items import ITEM_IDS, ItemCodes
from ray_recsys.core.preparing.rows import (
    UserRows,
    deduplicate,
    filter_rows,
    in_time_order,
    read_rows,
    write_rows,
)
from ray_recsys.core.preparing.splits import global_time, label_rows
from ray_recsys.core.preparing.timestamps import MICROSECONDS


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What the steps of every partition need to know."""

    staging: Path
    blocks: Sequence[str]
    bucket_bounds: Sequence[int]
    """First hash bucket of each partition and, last, the end."""
    user_kind: IdKind
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

    def folder(self, partition: int) -> Path:
        """Returns the folder of a partition's intermediate files."""
        return self.staging / f"partition-{partition:06d}"

    def read_step(self, partition: int, step: int) -> UserRows:
        """Returns the rows that a step left."""
        return read_rows(self.folder(partition) / f"rows-{step}.arrow")

    def read_users(self, partition: int) -> pa.Array:
        """Returns the ids of a partition's users, in order; some may have lost all their rows."""
        return read_arrow(self.folder(partition) / "users.arrow")["id"].combine_chunks()


@dataclass(frozen=True, slots=True)
class StepReport:
    """Summary of a partition after a step; its item counts are in a file."""

    num_rows: int
    num_users: int
    """Users with training rows."""
    num_new_users: int
    """Users with held-out rows only."""
    drops: DropLog


@dataclass(frozen=True, slots=True)
class SettledRows:
    """The interactions that are left after deduplication, filters and split."""

    last_step: int
    reports: Sequence[StepReport]
    """The last step's report of each partition."""
    item_counts: Int64s
    """(training rows, held-out rows) of each item code, int64[2, I]."""
    drops: DropLog
    """Of all steps."""

    @property
    def num_rows(self) -> int:
        """Number of interactions."""
        return sum(report.num_rows for report in self.reports)


def settle_rows(plan: PartitionPlan, num_items: int, executor: Executor) -> SettledRows:
    """Deduplicates, filters and splits the staged rows, one task per partition and step."""
    drops = DropLog()

    def run(step: Callable[[int], StepReport]) -> list[StepReport]:
        stage = f"deduplicating, filtering and splitting in {plan.staging}"
        reports = map_in_order(executor, step, plan.num_partitions, stage=stage)
        drops.merge(DropLog.merged(report.drops for report in reports))
        return reports

    rules = plan.rules
    is_filtered = rules.min_interactions_per_item > 1 or rules.min_interactions_per_user > 1
    is_core = is_filtered and rules.filter == "k_core"
    step = 0
    reports = run(partial(gather, plan, is_last=not is_filtered))
    counts = sum_item_counts(plan, step, num_items)
    while is_filtered:
        num_rows = sum(report.num_rows for report in reports)
        is_kept_item = counts[0] >= rules.min_interactions_per_item
        step += 1
        reports = run(partial(filter_step, plan, step=step, is_kept_item=is_kept_item, is_last=not is_core))
        counts = sum_item_counts(plan, step, num_items)
        is_filtered = is_core and sum(report.num_rows for report in reports) < num_rows
        for path in plan.staging.glob(f"partition-*/rows-{step - 2}.arrow"):
            path.unlink()
    if is_core:
        step += 1
        reports = run(partial(label_step, plan, step=step))
        counts = sum_item_counts(plan, step, num_items)
    return SettledRows(step, reports, counts, drops)


def gather(plan: PartitionPlan, partition: int, *, is_last: bool) -> StepReport:
    """Collects a partition's rows from all blocks, deduplicates them and applies the minimum rating.

    Args:
        plan: What all partitions share.
        partition: Which partition.
        is_last: Whether no filter follows, so that the rows can be split at once.
    """
    rows, user_ids = _collect(plan, partition)
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
    folder = plan.folder(partition)
    folder.mkdir(exist_ok=True)
    write_arrow(pa.table({"id": user_ids}), folder / "users.arrow")
    return _finish_step(plan, partition, 0, in_time_order(rows), dropped, is_last=is_last)


def filter_step(plan: PartitionPlan, partition: int, *, step: int, is_kept_item: Bools, is_last: bool) -> StepReport:
    """Applies one round of the filters to the rows of the step before."""
    rows, num_users = plan.read_step(partition, step - 1), len(plan.read_users(partition))
    rows, dropped = filter_rows(rows, num_users, is_kept_item, plan.rules.min_interactions_per_user)
    return _finish_step(plan, partition, step, rows, dropped, is_last=is_last)


def label_step(plan: PartitionPlan, partition: int, *, step: int) -> StepReport:
    """Splits the rows of the step before."""
    return _finish_step(plan, partition, step, plan.read_step(partition, step - 1), {}, is_last=True)


def sum_item_counts(plan: PartitionPlan, step: int, num_items: int) -> Int64s:
    """Returns each item's (training rows, held-out rows) over all partitions after a step, int64[2, I]."""
    totals = np.zeros((2, num_items), np.int64)
    for partition in range(plan.num_partitions):
        items, counts = np.split(np.load(plan.folder(partition) / f"counts-{step}.npy"), [1])
        totals[:, items[0]] += counts
    return totals


def _collect(plan: PartitionPlan, partition: int) -> tuple[UserRows, pa.Array]:
    """Returns a partition's rows and the distinct ids of its users, in order."""
    first, end = plan.bucket_bounds[partition], plan.bucket_bounds[partition + 1]
    codes = ItemCodes(plan.staging)
    ids, shifts, parts = [cast_ids(pa.array([], pa.string()), plan.user_kind)], [], []
    num_ids = 0
    for block in plan.blocks:
        row_starts, user_starts = np.load(plan.staging / block / "buckets.npy", mmap_mode="r")
        rows, users = slice(row_starts[first], row_starts[end]), slice(user_starts[first], user_starts[end])
        if rows.start == rows.stop:
            continue
        part = _read_slice(plan.staging / block / "rows.arrow", rows)
        ids.append(cast_ids(_read_slice(plan.staging / block / "users.arrow", users)["id"], plan.user_kind))
        shifts.append((num_ids - users.start, rows.stop - rows.start))
        num_ids += len(ids[-1])
        parts.append({**part, "item": codes.of_rows(block, part["item"].to_numpy())})
    rank_of_id, user_ids = _ranked(pa.concat_arrays(ids))
    if not parts:
        return _no_rows(plan.input), user_ids
    columns = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    shift = np.repeat([shift for shift, _ in shifts], [length for _, length in shifts])
    time_us = columns.get("time_us")
    return UserRows(
        user=rank_of_id[columns["user"] + shift],
        item=columns["item"],
        time=time_us if time_us is None or plan.time_unit_us == 1 else time_us // plan.time_unit_us,
        rating=columns.get("rating"),
        label=columns.get("label"),
    ), user_ids


def _no_rows(recipe: InputRecipe) -> UserRows:
    return UserRows(
        user=np.zeros(0, np.int32),
        item=np.zeros(0, np.int32),
        time=None if recipe.timestamp_column is None else np.zeros(0, np.int64),
        rating=None if recipe.rating_column is None else np.zeros(0, np.float32),
    )


def _read_slice(path: Path, rows: slice) -> dict[str, Any]:
    table = read_arrow(path).slice(int(rows.start), int(rows.stop - rows.start))
    return {name: table[name].combine_chunks() for name in table.column_names}


def _ranked(ids: pa.Array) -> tuple[Int64s, pa.Array]:
    """Returns (the rank of each id among the distinct ids, the distinct ids in order)."""
    encoded = ids.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], encoded.dictionary.take(order)


def _finish_step(
    plan: PartitionPlan, partition: int, step: int, rows: UserRows, dropped: Mapping[str, UserRows], *, is_last: bool
) -> StepReport:
    folder, user_ids = plan.folder(partition), plan.read_users(partition)
    if is_last and (rows.label is None or plan.split.method == "given"):
        rows = replace(rows, label=label_rows(rows, user_ids, plan.staging / ITEM_IDS, plan.split, plan.seed))
    write_rows(rows, folder / f"rows-{step}.arrow")
    is_training = rows.is_training()
    write_array(_item_counts(rows, is_training), folder / f"counts-{step}.npy")
    has_training = np.zeros(len(user_ids), np.bool_)
    has_training[rows.user[is_training]] = True
    has_held_out = np.zeros(len(user_ids), np.bool_)
    has_held_out[rows.user[~is_training]] = True
    return StepReport(
        num_rows=len(rows),
        num_users=int(has_training.sum()),
        num_new_users=int((has_held_out & ~has_training).sum()),
        drops=log_drops(plan, partition, dropped),
    )


def _item_counts(rows: UserRows, is_training: Bools) -> Int64s:
    """Returns (item, training rows, held-out rows) of each distinct item, int64[3, items]."""
    items = np.flatnonzero(np.bincount(rows.item))
    counts = [
        np.bincount(rows.item[mask], minlength=len(items) and int(items[-1]) + 1)
        for mask in (is_training, ~is_training)
    ]
    return np.stack([items, *(count[items] for count in counts)])


def log_drops(plan: PartitionPlan, partition: int, dropped: Mapping[str, UserRows]) -> DropLog:
    """Returns a log of a partition's dropped rows, with their original ids."""
    drops = DropLog()
    for reason, rows in dropped.items():
        drops.add(reason, len(rows), _examples(plan, partition, rows.take(slice(MAX_EXAMPLES))))
    return drops


def _examples(plan: PartitionPlan, partition: int, rows: UserRows) -> list[Example]:
    item_ids = read_arrow(plan.staging / ITEM_IDS)["id"]
    columns: dict[str, list[Any]] = {
        "user_id": plan.read_users(partition).take(pa.array(rows.user, pa.int64())).to_pylist(),
        "item_id": item_ids.take(pa.array(rows.item, pa.int64())).to_pylist(),
    }
    if rows.time is not None:
        columns["timestamp_s"] = (rows.time * plan.time_unit_us // MICROSECONDS).tolist()
    if rows.rating is not None:
        columns["rating"] = rows.rating.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
