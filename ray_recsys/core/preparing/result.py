"""Last pass of prepare: partitions under their final indices, the manifest, and the error when too little is left.

Held-out rows that a model cannot be evaluated on (their item or their user has no training interaction) end here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.artifact import FileDigest
from ray_recsys.core.executor import Executor, map_in_order
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import PartitionInfo, PreparedManifest, write_partition
from ray_recsys.core.preparing.checking import DropLog
from ray_recsys.core.preparing.partitions import PartitionPlan, SettledRows, log_drops
from ray_recsys.core.preparing.rows import TEST, TRAINING, VALIDATION, UserRows
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.errors import DataError, EmptyDataError
from ray_recsys.storage.location import Location


@dataclass(frozen=True, slots=True)
class WriteReport:
    """Summary of a written partition for the manifest."""

    info: PartitionInfo
    digest: FileDigest
    num_users_with_validation: int
    num_users_with_test: int
    num_users_without_held_out: int
    drops: DropLog


@dataclass(frozen=True, slots=True)
class FinalIndices:
    """What turns item codes and users' ranks into the indices of the prepared set."""

    item_idx: Int32s
    """Index of each item code, int32[I]; -1: not in the vocabulary."""
    first_user_idx: Int64s
    """Index of each partition's first user."""

    @classmethod
    def of(cls, settled: SettledRows, order: Int64s) -> "FinalIndices":
        """Returns the indices, given the item codes of the vocabulary in order of index."""
        item_idx = np.full(settled.item_counts.shape[1], -1, np.int32)
        item_idx[order] = np.arange(len(order), dtype=np.int32)
        num_users = [report.num_users for report in settled.reports]
        return cls(item_idx, np.concatenate([[0], np.cumsum(num_users)])[:-1])


def write_partitions(
    plan: PartitionPlan, settled: SettledRows, order: Int64s, root: Location, executor: Executor
) -> list[WriteReport]:
    """Writes the partitions of a prepared set, one task each.

    Args:
        plan: What all partitions share.
        settled: The interactions to write.
        order: Item codes of the vocabulary, in order of index.
        root: The unfinished prepared set, in storage that every node reaches.
        executor: Runs the tasks.
    """
    task = partial(write_users, plan, FinalIndices.of(settled, order), settled.last_step, root)
    return map_in_order(executor, task, plan.num_partitions, stage=f"writing the partitions of {root}")


def write_users(plan: PartitionPlan, indices: FinalIndices, step: int, root: Location, partition: int) -> WriteReport:
    """Writes one partition of a prepared set from the rows of a step that has split them."""
    rows, user_ids = plan.read_step(partition, step), plan.read_users(partition)
    assert rows.label is not None
    is_user = np.bincount(rows.user[rows.label == TRAINING], minlength=len(user_ids)) > 0
    has_user, has_item = is_user[rows.user], indices.item_idx[rows.item] >= 0
    dropped = {
        "held_out_user_not_in_training": rows.take(~has_user),
        "held_out_item_not_in_training": rows.take(has_user & ~has_item),
    }
    drops = log_drops(plan, partition, {reason: of_reason for reason, of_reason in dropped.items() if len(of_reason)})
    is_kept = has_user & has_item
    rows = rows if is_kept.all() else rows.take(is_kept)
    rows = replace(rows, user=(np.cumsum(is_user) - 1)[rows.user], item=indices.item_idx[rows.item])
    num_users, first = int(is_user.sum()), int(indices.first_user_idx[partition])
    training, validation, test = (
        _interactions(rows, label, num_users, plan.time_unit_us) for label in (TRAINING, VALIDATION, TEST)
    )
    user_ids = user_ids.filter(pa.array(is_user))
    info, digest = write_partition(root, partition, Histories(first, training, validation, test), user_ids)
    return WriteReport(
        info=info,
        digest=digest,
        num_users_with_validation=int(np.count_nonzero(validation.lengths)),
        num_users_with_test=int(np.count_nonzero(test.lengths)),
        num_users_without_held_out=int(np.count_nonzero(validation.lengths + test.lengths == 0)),
        drops=drops,
    )


def _interactions(rows: UserRows, label: int, num_users: int, time_unit_us: int) -> Interactions:
    part = rows.take(np.asarray(rows.label == label))
    lengths = np.bincount(part.user, minlength=num_users)
    time_s = None if part.time is None else part.time.astype(np.int64) * time_unit_us // MICROSECONDS
    return Interactions(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_idx=part.item.astype(np.int32, copy=False),
        timestamp_s=time_s,
        rating=part.rating,
        repetition=None if part.repetition is None else part.repetition.astype(np.int32),
    )


def check_left(rows_in: int, num_users: int, num_items: int, drops: DropLog) -> None:
    """Checks that enough is left to learn from.

    Raises:
        EmptyDataError: No training interaction is left; the message says which filter dropped what.
        DataError: Only one user or one item is left.
    """
    if num_users > 1 and num_items > 1:
        return
    dropped = f"dropped: {drops.describe()}" if drops.total else "none dropped"
    remedy = "give more data, or relax the recipe's [prepare], [split] or drop rules of [input]"
    if num_users == 0 or num_items == 0:
        raise EmptyDataError(f"no training interaction is left of {rows_in:,} rows ({dropped})", remedy=remedy)
    users = "1 user" if num_users == 1 else f"{num_users:,} users"
    items = "1 item" if num_items == 1 else f"{num_items:,} items"
    raise DataError(
        f"only {users} and {items} are left of {rows_in:,} rows ({dropped}), but a recommender needs 2 of each",
        remedy=remedy,
    )


def build_manifest(
    rows_in: int,
    drops: DropLog,
    plan: PartitionPlan,
    settled: SettledRows,
    written: Sequence[WriteReport],
    *,
    recipe: Recipe,
    identity: str,
) -> PreparedManifest:
    """Returns the manifest of a written prepared set; `identity` is the fingerprint of its input."""
    infos = tuple(report.info for report in written)
    num_training, num_validation, num_test = (
        sum(counts) for counts in zip(*((i.num_training, i.num_validation, i.num_test) for i in infos), strict=True)
    )
    rows_kept = num_training + num_validation + num_test
    assert rows_in == rows_kept + drops.total, (rows_in, rows_kept, drops.counts)
    return PreparedManifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        rows_in=rows_in,
        rows_kept=rows_kept,
        rows_dropped=dict(sorted(drops.counts.items())),
        num_users=sum(info.num_users for info in infos),
        num_items=int(np.count_nonzero(settled.item_counts[0])),
        num_training=num_training,
        num_validation=num_validation,
        num_test=num_test,
        split=_describe_split(plan, settled, written),
        input_fingerprint=identity,
        recipe=recipe,
        partitions=infos,
    )


def _describe_split(plan: PartitionPlan, settled: SettledRows, written: Sequence[WriteReport]) -> dict[str, Any]:
    is_split_first = plan.split.method in ("global_time", "given")
    training, held_out = settled.item_counts
    described: dict[str, Any] = {
        "method": plan.split.method,
        "ties_in_time": "by item id",
        "time_unit_us": plan.time_unit_us,
        "fitted_on": {
            "filters": "training interactions" if is_split_first else "all interactions, before the split",
            "vocabulary": "training interactions",
            "counts": "training interactions",
        },
        "num_users_with_validation": sum(report.num_users_with_validation for report in written),
        "num_users_with_test": sum(report.num_users_with_test for report in written),
        "num_users_without_held_out": sum(report.num_users_without_held_out for report in written),
        "num_users_not_in_training": sum(report.num_new_users for report in settled.reports),
        "num_items_not_in_training": int(np.count_nonzero((training == 0) & (held_out > 0))),
    }
    if plan.cuts is not None:
        per_second = MICROSECONDS // plan.time_unit_us
        described["validation_from_s"], described["test_from_s"] = (cut / per_second for cut in plan.cuts)
    return described
