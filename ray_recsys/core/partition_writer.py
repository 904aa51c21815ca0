"""Last step of prepare: a partition's rows under their final indices, as histories of users.

Held-out rows that training cannot score (their item or their user has no training interaction) end here.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_recsys.core.artifact import FileDigest
from ray_recsys.core.drops import DropLog
from ray_recsys.core.histories import Histories, Int32s, Int64s, Interactions
from ray_recsys.core.partition_steps import PartitionPlan, log_drops, read_users
from ray_recsys.core.prepared import PartitionInfo, write_partition
from ray_recsys.core.timestamps import MICROSECONDS
from ray_recsys.core.user_rows import TEST, TRAINING, VALIDATION, UserRows, read_rows


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What the manifest says of a written partition."""

    info: PartitionInfo
    digest: FileDigest
    num_users_with_validation: int
    num_users_with_test: int
    drops: DropLog


def write_users(
    plan: PartitionPlan, partition: int, step: int, item_idx: Int32s, first_user_idx: int, directory: Path
) -> WriteReport:
    """Writes a partition of the prepared set.

    Args:
        plan: Of the log.
        partition: Which.
        step: The last step done, whose rows have labels.
        item_idx: Index of each item code, int32[I]; -1: not in the vocabulary.
        first_user_idx: Index of the partition's first user.
        directory: The prepared set that is being made.
    """
    rows = read_rows(plan.folder(partition) / f"rows-{step}.arrow")
    user_ids = read_users(plan, partition)
    assert rows.label is not None
    is_user = np.bincount(rows.user[rows.label == TRAINING], minlength=len(user_ids)) > 0
    has_user, has_item = is_user[rows.user], item_idx[rows.item] >= 0
    dropped = {
        "held_out_user_not_in_training": rows.take(~has_user),
        "held_out_item_not_in_training": rows.take(has_user & ~has_item),
    }
    drops = log_drops(plan, partition, {reason: gone for reason, gone in dropped.items() if len(gone)})
    rows = rows.take(has_user & has_item)
    places = np.cumsum(is_user) - 1
    parts = [
        _interactions(plan, rows, label, places, int(is_user.sum()), item_idx) for label in (TRAINING, VALIDATION, TEST)
    ]
    histories = Histories(first_user_idx, *parts)
    info, digest = write_partition(directory, partition, histories, user_ids.filter(pa.array(is_user)))
    return WriteReport(
        info=info,
        digest=digest,
        num_users_with_validation=int(np.count_nonzero(histories.validation.lengths)),
        num_users_with_test=int(np.count_nonzero(histories.test.lengths)),
        drops=drops,
    )


def _interactions(
    plan: PartitionPlan, rows: UserRows, label: int, places: Int64s, num_users: int, item_idx: Int32s
) -> Interactions:
    part = rows.take(rows.label == label)
    lengths = np.bincount(places[part.user], minlength=num_users)
    time_s = None if part.time is None else part.time.astype(np.int64) * plan.time_unit_us // MICROSECONDS
    return Interactions(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_idx=item_idx[part.item],
        timestamp_s=time_s,
        rating=part.rating,
        repetition=None if part.repetition is None else part.repetition.astype(np.int32),
    )
