"""What `prepare` says of its work: the manifest's counts, and the error when too little is left.

Knows nothing of how the numbers came about.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.prepared import PreparedManifest
from ray_recsys.core.preparing.drops import DropLog
from ray_recsys.core.preparing.partition_steps import PartitionPlan
from ray_recsys.core.preparing.partition_writer import WriteReport
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.errors import DataError, EmptyDataError


@dataclass(frozen=True, slots=True)
class SettledRows:
    """The interactions that are left after deduplication, filters and split."""

    last_step: int
    num_rows: int
    num_users: Sequence[int]
    """Users of each partition with training rows."""
    num_new_users: int
    """Users with rows after the cut alone."""
    item_counts: Int64s
    """(training rows, held-out rows) of each item code, int64[2, I]."""


def check_left(rows_in: int, num_users: int, num_items: int, drops: DropLog) -> None:
    """Checks that something is left to learn from.

    Raises:
        DataError: One user or one item; EmptyDataError: none. The message says which filter removed what.
    """
    if num_users > 1 and num_items > 1:
        return
    dropped = f"dropped: {drops.describe()}" if drops.total else "none dropped"
    remedy = "give more data, or loosen [input] drop, [prepare] or [split] of the recipe"
    if num_users == 0 or num_items == 0:
        raise EmptyDataError(f"no training interaction is left of {rows_in:,} rows ({dropped}); {remedy}")
    users = "1 user" if num_users == 1 else f"{num_users:,} users"
    items = "1 item" if num_items == 1 else f"{num_items:,} items"
    raise DataError(
        f"only {users} and {items} are left of {rows_in:,} rows ({dropped}); a recommender needs at least 2 of each: "
        f"{remedy}"
    )


def build_manifest(
    rows_in: int,
    drops: DropLog,
    plan: PartitionPlan,
    settled: SettledRows,
    written: Sequence[WriteReport],
    *,
    identity: str,
) -> PreparedManifest:
    """Returns the manifest of a written prepared set."""
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
        recipe=plan.recipe,
        partitions=infos,
    )


def _describe_split(plan: PartitionPlan, settled: SettledRows, written: Sequence[WriteReport]) -> dict[str, Any]:
    recipe: Recipe = plan.recipe
    is_time_cut = recipe.split.method == "global_time"
    training, held_out = settled.item_counts
    described: dict[str, Any] = {
        "method": recipe.split.method,
        "ties_in_time": "by item id",
        "time_unit_us": plan.time_unit_us,
        "fitted_on": {
            "filters": "training interactions" if is_time_cut else "all interactions, before the split",
            "vocabulary": "training interactions",
            "counts": "training interactions",
        },
        "num_users_with_validation": sum(report.num_users_with_validation for report in written),
        "num_users_with_test": sum(report.num_users_with_test for report in written),
        "num_users_without_held_out": sum(report.num_users_without_held_out for report in written),
        "num_users_not_in_training": settled.num_new_users,
        "num_items_not_in_training": int(np.count_nonzero((training == 0) & (held_out > 0))),
    }
    if plan.cuts is not None:
        per_second = MICROSECONDS // plan.time_unit_us
        described["validation_from_s"], described["test_from_s"] = (cut / per_second for cut in plan.cuts)
    return described
