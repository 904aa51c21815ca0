"""Second pass of prepare: what is done to one partition of users, step by step; each step leaves a file for the next.

gather (rows of every block → sorted, deduplicated) → filter (any number of rounds) → label → write. Every step is a
function of the files of the step before, so that running one again gives the same bytes. Knows nothing of other
partitions but the counts of items, and nothing of Ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.preparing.deduplication import deduplicate, in_time_order
from ray_recsys.core.preparing.drops import MAX_EXAMPLES, DropLog, Example
from ray_recsys.core.preparing.filters import filter_round
from ray_recsys.core.preparing.id_hash import hash_ids
from ray_recsys.core.preparing.interactions import IdKind, cast_ids
from ray_recsys.core.preparing.item_codes import ITEM_IDS, ItemCodes
from ray_recsys.core.preparing.scatter import read_arrow, write_array, write_arrow
from ray_recsys.core.preparing.splits import global_time, leave_one_out, random_per_user
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.core.preparing.user_rows import UserRows, read_rows, write_rows


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What the steps of every partition need to know of the log."""

    staging: Path
    recipe: Recipe
    blocks: Sequence[str]
    bucket_bounds: Sequence[int]
    """First hash bucket of each partition and, last, the end."""
    user_kind: IdKind
    time_unit_us: int
    cuts: tuple[int, int] | None
    """First moments of validation and test in the log's time unit; None unless split.method is global_time."""

    @property
    def num_partitions(self) -> int:
        """How many partitions the users are in."""
        return len(self.bucket_bounds) - 1

    def folder(self, partition: int) -> Path:
        """Returns where a partition's files wait."""
        return self.staging / f"partition-{partition:06d}"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a step says of its partition; the counts of items are in a file beside it."""

    partition: int
    num_rows: int
    num_users: int
    """Users with training rows."""
    num_new_users: int
    """Users with rows after the cut alone."""
    drops: DropLog


def gather(plan: PartitionPlan, partition: int, *, is_last: bool) -> StepReport:
    """Collects a partition's rows from all blocks, deduplicates them and applies the minimum rating.

    Args:
        plan: Of the log.
        partition: Which.
        is_last: Whether no filter follows, so that the split can be made at once.
    """
    recipe = plan.recipe
    rows, user_ids = _collect(plan, partition)
    if plan.cuts is not None:
        assert rows.time is not None
        rows = UserRows(**{**rows.columns(), "label": global_time(rows.time, *plan.cuts)})
    result = deduplicate(rows, recipe.prepare.deduplicate)
    rows, dropped = result.rows, dict(result.dropped)
    if recipe.prepare.min_rating is not None and rows.rating is not None:
        is_low = rows.rating < recipe.prepare.min_rating
        dropped["below_min_rating"] = rows.take(is_low)
        rows = rows.take(~is_low)
    rows = in_time_order(rows)
    folder = plan.folder(partition)
    folder.mkdir(exist_ok=True)
    write_arrow(pa.table({"id": user_ids}), folder / "users.arrow")
    return _finish_step(plan, partition, 0, rows, dropped, is_last=is_last)


def filter_step(
    plan: PartitionPlan, partition: int, step: int, is_kept_item: npt.NDArray[np.bool_], *, is_last: bool
) -> StepReport:
    """Does one round of the filters on the rows that step `step` - 1 left behind."""
    rows = read_rows(plan.folder(partition) / f"rows-{step - 1}.arrow")
    result = filter_round(
        rows, len(read_users(plan, partition)), is_kept_item, plan.recipe.prepare.min_interactions_per_user
    )
    return _finish_step(plan, partition, step, result.rows, result.dropped, is_last=is_last)


def label_step(plan: PartitionPlan, partition: int, step: int) -> StepReport:
    """Makes the split of the rows that step `step` - 1 left behind."""
    rows = read_rows(plan.folder(partition) / f"rows-{step - 1}.arrow")
    return _finish_step(plan, partition, step, rows, {}, is_last=True)


def sum_item_counts(plan: PartitionPlan, step: int, num_items: int) -> Int64s:
    """Returns each item's (training rows, held-out rows) after a step, int64[2, I], over all partitions."""
    totals = np.zeros((2, num_items), np.int64)
    for partition in range(plan.num_partitions):
        items, counts = np.split(np.load(plan.folder(partition) / f"counts-{step}.npy"), [1])
        totals[:, items[0]] += counts
    return totals


def _collect(plan: PartitionPlan, partition: int) -> tuple[UserRows, pa.Array]:
    first, end = plan.bucket_bounds[partition], plan.bucket_bounds[partition + 1]
    codes = ItemCodes(plan.staging)
    ids, starts, parts = [], [], []
    num_ids = 0
    for block in plan.blocks:
        row_starts, user_starts = np.load(plan.staging / block / "buckets.npy", mmap_mode="r")
        rows, users = slice(row_starts[first], row_starts[end]), slice(user_starts[first], user_starts[end])
        if rows.start == rows.stop:
            continue
        part = _read_slice(plan.staging / block / "rows.arrow", rows)
        ids.append(cast_ids(_read_slice(plan.staging / block / "users.arrow", users)["id"], plan.user_kind))
        starts.append((num_ids - users.start, rows.stop - rows.start))
        num_ids += len(ids[-1])
        parts.append({**part, "item": codes.of_rows(block, part["item"].to_numpy())})
    place_of_id, user_ids = _order_of(
        pa.concat_arrays(ids) if ids else cast_ids(pa.array([], pa.string()), plan.user_kind)
    )
    columns = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in (parts[0] if parts else ())}
    if not parts:
        return _no_rows(plan.recipe), user_ids
    shift = np.repeat([start for start, _ in starts], [length for _, length in starts])
    time_us = columns.get("time_us")
    time = None if time_us is None or plan.time_unit_us == 1 else time_us // plan.time_unit_us
    return UserRows(
        user=place_of_id[columns["user"] + shift],
        item=columns["item"],
        time=time_us if time is None else time,
        rating=columns.get("rating"),
    ), user_ids


def _no_rows(recipe: Recipe) -> UserRows:
    return UserRows(
        user=np.zeros(0, np.int32),
        item=np.zeros(0, np.int32),
        time=None if recipe.input.timestamp_column is None else np.zeros(0, np.int64),
        rating=None if recipe.input.rating_column is None else np.zeros(0, np.float32),
    )


def _read_slice(path: Path, rows: slice) -> dict[str, Any]:
    table = read_arrow(path).slice(int(rows.start), int(rows.stop - rows.start))
    return {name: table[name].combine_chunks() for name in table.column_names}


def _order_of(ids: pa.Array) -> tuple[Int64s, pa.Array]:
    """Returns (each id's place among the distinct ones in order, those)."""
    encoded = ids.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    return place[encoded.indices.to_numpy()], encoded.dictionary.take(order)


def read_users(plan: PartitionPlan, partition: int) -> pa.Array:
    """Returns the ids of a partition's users, in order; some may have lost all their rows."""
    return read_arrow(plan.folder(partition) / "users.arrow")["id"].combine_chunks()


def _finish_step(
    plan: PartitionPlan, partition: int, step: int, rows: UserRows, dropped: Mapping[str, UserRows], *, is_last: bool
) -> StepReport:
    folder = plan.folder(partition)
    user_ids = read_users(plan, partition)
    if is_last and rows.label is None:
        rows = UserRows(**{**rows.columns(), "label": _split(plan, rows, user_ids)})
    write_rows(rows, folder / f"rows-{step}.arrow")
    is_training = rows.is_training()
    write_array(_item_counts(rows, is_training), folder / f"counts-{step}.npy")
    has_training = np.zeros(len(user_ids), np.bool_)
    has_training[rows.user[is_training]] = True
    has_held_out = np.zeros(len(user_ids), np.bool_)
    has_held_out[rows.user[~is_training]] = True
    return StepReport(
        partition=partition,
        num_rows=len(rows),
        num_users=int(has_training.sum()),
        num_new_users=int((has_held_out & ~has_training).sum()),
        drops=log_drops(plan, partition, dropped),
    )


def _split(plan: PartitionPlan, rows: UserRows, user_ids: pa.Array) -> npt.NDArray[np.int8]:
    lengths = np.bincount(rows.user, minlength=len(user_ids))
    split = plan.recipe.split
    if split.method == "leave_one_out":
        return leave_one_out(lengths)
    item_ids = read_arrow(plan.staging / ITEM_IDS)["id"].combine_chunks()
    items, places = np.unique(rows.item, return_inverse=True)
    item_hash = hash_ids(item_ids.take(pa.array(items)))[places]
    user_hash = hash_ids(user_ids)[rows.user] if len(rows) else np.zeros(0, np.uint64)
    return random_per_user(lengths, user_hash, item_hash, split, plan.recipe.seed)


def _item_counts(rows: UserRows, is_training: npt.NDArray[np.bool_]) -> Int64s:
    """Returns the items of rows and how often each is in training and held out, int64[3, items]."""
    items = np.flatnonzero(np.bincount(rows.item))
    counts = [
        np.bincount(rows.item[mask], minlength=len(items) and int(items[-1]) + 1)
        for mask in (is_training, ~is_training)
    ]
    return np.stack([items, *(count[items] for count in counts)])


def log_drops(plan: PartitionPlan, partition: int, dropped: Mapping[str, UserRows]) -> DropLog:
    """Returns the log of dropped rows, with ids as they went in."""
    drops = DropLog()
    for reason, rows in dropped.items():
        drops.add(reason, len(rows), _examples(plan, partition, rows.take(slice(MAX_EXAMPLES))))
    return drops


def _examples(plan: PartitionPlan, partition: int, rows: UserRows) -> list[Example]:
    item_ids = read_arrow(plan.staging / ITEM_IDS)["id"]
    columns: dict[str, list[Any]] = {
        "user_id": read_users(plan, partition).take(pa.array(rows.user, pa.int64())).to_pylist(),
        "item_id": item_ids.take(pa.array(rows.item, pa.int64())).to_pylist(),
    }
    if rows.time is not None:
        columns["timestamp_s"] = (rows.time * plan.time_unit_us // MICROSECONDS).tolist()
    if rows.rating is not None:
        columns["rating"] = rows.rating.tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
