"""Last step of prepare: a partition's rows under their final indices, as histories of users.

Held-out rows that training cannot score (their item or their user has no training interaction) end here.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.artifact import FileDigest
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import PartitionInfo, write_partition
from ray_recsys.core.preparing.drops import DropLog
from ray_recsys.core.preparing.partition_steps import PartitionPlan, log_drops, read_users
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.core.preparing.user_rows import TEST, TRAINING, VALIDATION, UserRows, read_rows


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What the manifest says of a written partition."""

    info: PartitionInfo
    digest: FileDigest
    num_users_with_validation: int
    num_users_with_test: int
    num_users_without_held_out: int
    drops: DropLog


@dataclass(frozen=True, slots=True)
class FinalIndices:
    """What turns codes and places into the indices of the prepared set."""

    item_idx: Int32s
    """Index of each item code, int32[I]; -1: not in the vocabulary."""
    first_user_idx: Int64s
    """Index of each partition's first user."""


def write_users(
    plan: PartitionPlan, partition: int, indices: FinalIndices, directory: Path, *, step: int
) -> WriteReport:
    """Writes a partition of the prepared set.

    Args:
        plan: Of the log.
        partition: Which.
        indices: Of all partitions.
        directory: The prepared set that is being made.
        step: The last step done, whose rows have labels.
    """
    rows = read_rows(plan.folder(partition) / f"rows-{step}.arrow")
    user_ids = read_users(plan, partition)
    assert rows.label is not None
    is_user = np.bincount(rows.user[rows.label == TRAINING], minlength=len(user_ids)) > 0
    has_user, has_item = is_user[rows.user], indices.item_idx[rows.item] >= 0
    dropped = {
        "held_out_user_not_in_training": rows.take(~has_user),
        "held_out_item_not_in_training": rows.take(has_user & ~has_item),
    }
    drops = log_drops(plan, partition, {reason: gone for reason, gone in dropped.items() if len(gone)})
    is_kept = has_user & has_item
    rows = rows if is_kept.all() else rows.take(is_kept)
    rows = replace(rows, user=(np.cumsum(is_user) - 1)[rows.user], item=indices.item_idx[rows.item])
    num_users, first = int(is_user.sum()), int(indices.first_user_idx[partition])
    training, validation, test = (
        _interactions(rows, label, num_users, plan.time_unit_us) for label in (TRAINING, VALIDATION, TEST)
    )
    user_ids = user_ids.filter(pa.array(is_user))
    info, digest = write_partition(directory, partition, Histories(first, training, validation, test), user_ids)
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
