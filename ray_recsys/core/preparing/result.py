"""Last pass of prepare: partitions under their final indices, the manifest, and the error when too little is left.

Held-out rows that a model cannot be evaluated on (their item or their user has no training interaction) end here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.artifact import FileDigest
from ray_recsys.core.exchange import Exchange, drain
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import PartitionInfo, PreparedManifest, write_partition
from ray_recsys.core.preparing.checking import DropLog
from ray_recsys.core.preparing.ids import PackedIds
from ray_recsys.core.preparing.items import WrittenItems
from ray_recsys.core.preparing.rows import TEST, TRAINING, VALIDATION, UserRows
from ray_recsys.core.preparing.settling import PartitionPlan, SettledRows, log_drops
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


def write_partitions(
    plan: PartitionPlan, settled: SettledRows, items: WrittenItems, root: Location, exchange: Exchange
) -> list[WriteReport]:
    """Writes the partitions of a prepared set, one task each.

    Args:
        plan: What all partitions share.
        settled: The interactions to write; its rows are freed one after the other.
        items: The vocabulary.
        root: The unfinished prepared set, in storage that every node reaches.
        exchange: Runs the tasks.
    """
    num_users = [report.num_users for report in settled.reports]
    first_user_idx = np.concatenate([[0], np.cumsum(num_users)])[:-1]
    inputs = zip(drain(settled.users), drain(settled.rows), strict=True)
    left = exchange.run(
        _WriteUsers(root, plan.time_unit_us, first_user_idx),
        ([items.ids, items.item_idx, *of_partition] for of_partition in inputs),
        0,
        stage=f"writing the partitions of {root}",
        describe=plan.describe,
    )
    return [partition.report for partition in left]


@dataclass(frozen=True, slots=True)
class _WriteUsers:
    """Writes one partition from rows that have been split."""

    root: Location
    time_unit_us: int
    first_user_idx: Int64s
    """Of each partition."""

    def __call__(
        self, partition: int, item_ids: PackedIds, item_idx: Int32s, users: PackedIds, rows: UserRows
    ) -> tuple[WriteReport, Sequence[Any]]:
        assert rows.label is not None
        is_user = np.bincount(rows.user[rows.label == TRAINING], minlength=len(users)) > 0
        has_user, has_item = is_user[rows.user], item_idx[rows.item] >= 0
        dropped = {
            "held_out_user_not_in_training": rows.take(~has_user),
            "held_out_item_not_in_training": rows.take(has_user & ~has_item),
        }
        dropped = {reason: of_reason for reason, of_reason in dropped.items() if len(of_reason)}
        drops = log_drops(self.time_unit_us, users, item_ids, dropped)
        is_kept = has_user & has_item
        rows = rows if is_kept.all() else rows.take(is_kept)
        rows = replace(rows, user=(np.cumsum(is_user) - 1)[rows.user], item=item_idx[rows.item])
        num_users, first = int(is_user.sum()), int(self.first_user_idx[partition])
        training, validation, test = (
            _interactions(rows, label, num_users, self.time_unit_us) for label in (TRAINING, VALIDATION, TEST)
        )
        user_ids = users.array().filter(pa.array(is_user))
        histories = Histories(first, training, validation, test)
        info, digest = write_partition(self.root, partition, histories, user_ids)
        report = WriteReport(
            info=info,
            digest=digest,
            num_users_with_validation=int(np.count_nonzero(validation.lengths)),
            num_users_with_test=int(np.count_nonzero(test.lengths)),
            num_users_without_held_out=int(np.count_nonzero(validation.lengths + test.lengths == 0)),
            drops=drops,
        )
        return report, ()


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
        num_items=settled.totals.summary.num_in_training,
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
        "num_items_not_in_training": settled.totals.summary.num_held_out_only,
    }
    if plan.cuts is not None:
        per_second = MICROSECONDS // plan.time_unit_us
        described["validation_from_s"], described["test_from_s"] = (cut / per_second for cut in plan.cuts)
    return described
