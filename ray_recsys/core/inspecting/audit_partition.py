"""Audit of one partition of a prepared set: its file, its users, and an epoch of its negatives.

Does not know of other partitions, nor who runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.core.arrays import Int64s
from ray_recsys.core.artifact import verify_file
from ray_recsys.core.histories import Histories
from ray_recsys.core.inspecting.audit import Finding, find
from ray_recsys.core.inspecting.audit_histories import (
    AuditedUsers,
    audit_global_time,
    audit_histories,
    audit_leave_one_out,
    audit_negatives,
    audit_ties,
)
from ray_recsys.core.inspecting.audit_users import misplaced_users
from ray_recsys.core.prepared import PartitionInfo, PreparedSet
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.errors import IntegrityError

EPOCH = 1


def _no_items() -> Int64s:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class PartitionAudit:
    """Findings of a partition, and its training interactions counted by distinct item."""

    findings: tuple[Finding, ...]
    item_idx: Int64s = field(default_factory=_no_items)
    counts: Int64s = field(default_factory=_no_items)
    num_negatives: int = 0
    misplaced: pa.Array | None = None
    """Ids of users that belong to another partition; None: the file cannot be read."""


def audit_partition(
    prepared: PreparedSet, partition: int, item_rank: Int64s, sampler: NegativeSampler | None = None
) -> PartitionAudit:
    """Checks a partition; inside a file that is not what was written nothing is looked at.

    Args:
        prepared: The prepared set.
        partition: Which one.
        item_rank: Place of each item of the item table in the order of ids, int64[I].
        sampler: Draws the negatives that are checked; None: none are.
    """
    info = prepared.manifest.partitions[partition]
    try:
        verify_file(prepared.path, info.file, prepared.files[info.file])
        table = pq.read_table(prepared.path / info.file)
    except (IntegrityError, pa.ArrowException, KeyError, OSError) as error:
        return PartitionAudit((damaged_file(prepared.path / info.file, error),))
    num_items, split = len(item_rank), prepared.manifest.split
    users = AuditedUsers(Histories.from_table(table), table["user_id"].combine_chunks(), num_items)
    findings = [
        *_index_gaps(table["user_idx"].to_numpy(), info),
        *_wrong_counts(users, info),
        *audit_histories(users),
        *_audit_split(users, split),
    ]
    training = users.histories.training.item_idx
    is_known = all(np.all((part.item_idx >= 0) & (part.item_idx < num_items)) for part in users.parts().values())
    num_negatives = 0
    if is_known and split.get("time_unit_us") == MICROSECONDS:
        findings += audit_ties(users, item_rank, is_split_by_time=split["method"] != "random_per_user")
    if sampler is not None and is_known:
        rows, negatives = _draw_negatives(users, sampler)
        findings += audit_negatives(users, rows, negatives)
        num_negatives = negatives.size
    item_idx, counts = np.unique(training, return_counts=True)
    misplaced = misplaced_users(users.user_ids, partition, len(prepared.manifest.partitions))
    return PartitionAudit(tuple(findings), item_idx.astype(np.int64), counts.astype(np.int64), num_negatives, misplaced)


def damaged_file(path: Path, error: Exception) -> Finding:
    """Returns the finding of a file that is missing, truncated or changed."""
    text = str(error) if isinstance(error, IntegrityError) else f"{path}: {error}"
    return Finding(fault="files that are damaged", count=1, examples=(text,))


def _audit_split(users: AuditedUsers, split: Mapping[str, Any]) -> list[Finding]:
    if split["method"] == "leave_one_out":
        return audit_leave_one_out(users)
    if split["method"] == "global_time":
        return audit_global_time(users, split["validation_from_s"], split["test_from_s"])
    return []


def _index_gaps(user_idx: Int64s, info: PartitionInfo) -> list[Finding]:
    expected = info.first_user_idx + np.arange(len(user_idx))
    return find(
        "user indices that are not consecutive",
        user_idx != expected,
        lambda row: f"{info.file}, row {row}: user_idx {user_idx[row]} instead of {expected[row]}",
    )


def _wrong_counts(users: AuditedUsers, info: PartitionInfo) -> list[Finding]:
    counts = {f"num_{name}": len(part.item_idx) for name, part in users.parts().items()}
    counts["num_users"] = users.histories.training.num_users
    wrong = [
        f"{info.file}: {name} {count:,}, in the manifest {getattr(info, name):,}"
        for name, count in counts.items()
        if count != getattr(info, name)
    ]
    return find("counts of partitions that are not the manifest's", np.arange(len(wrong)), wrong.__getitem__)


def _draw_negatives(users: AuditedUsers, sampler: NegativeSampler) -> tuple[Int64s, Any]:
    """Draws for every positive whose user has not seen the whole catalogue."""
    training = users.histories.training
    rows = training.rows()
    position = np.arange(len(rows)) - training.offsets[rows]
    excluded = ExcludedItems.from_pairs(users.num_items, training.num_users, rows, training.item_idx)
    has_allowed = excluded.num_allowed(rows) > 0
    rows, position = rows[has_allowed], position[has_allowed]
    user_idx = rows + users.histories.first_user_idx
    return rows, sampler.draw(EPOCH, user_idx, position, excluded, rows)
