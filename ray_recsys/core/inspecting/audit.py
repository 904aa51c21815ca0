"""Audit of a prepared set: leakage, damage, wrong order, wrong counts; one task per partition.

Only findings, item counts and ids in the wrong partition come back from a task.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_recsys.core.arrays import Int64s
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.histories import Histories
from ray_recsys.core.inspecting.audit_findings import (
    AuditReport,
    Finding,
    audit_items,
    audit_manifest,
    find,
    merge_findings,
)
from ray_recsys.core.inspecting.audit_users import (
    AuditedUsers,
    audit_global_time,
    audit_histories,
    audit_leave_one_out,
    audit_negatives,
    audit_ties,
    audit_user_partitions,
    misplaced_users,
)
from ray_recsys.core.prepared import ITEMS, PartitionInfo, PreparedSet
from ray_recsys.core.preparing.timestamps import MICROSECONDS
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.errors import IntegrityError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.location import LocationLike

EPOCH = 1
MAX_NEGATIVE_PARTITIONS = 8
"""Maximum number of partitions whose negatives are drawn; they are spread evenly over all."""


def _no_items() -> Int64s:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class PartitionAudit:
    """Findings of a partition, and its training interactions counted by item."""

    findings: tuple[Finding, ...]
    item_idx: Int64s = field(default_factory=_no_items)
    """Distinct items."""
    counts: Int64s = field(default_factory=_no_items)
    num_negatives: int = 0
    misplaced: pa.Array | None = None
    """Ids of users that belong to another partition; None: the file cannot be read."""


@dataclass(frozen=True, slots=True)
class AuditedItems:
    """Item data for the checks of every partition."""

    rank: Int64s
    """Rank of each item index in the order of ids, int64[I]."""
    sampler: NegativeSampler
    """Draws the negatives that are checked."""

    @classmethod
    def of(cls, prepared: PreparedSet, items: pa.Table) -> "AuditedItems":
        """Returns it for the item table of a prepared set."""
        rank = np.empty(items.num_rows, np.int64)
        rank[pc.sort_indices(items["item_id"]).to_numpy()] = np.arange(items.num_rows)
        counts = items["count"].to_numpy().astype(np.int64)
        return cls(rank, NegativeSampler.from_recipe(prepared.manifest.recipe, counts))


def audit(data: LocationLike, executor: Executor, *, report: Reporter = silent) -> AuditReport:
    """Returns the faults of a prepared set.

    Raises:
        ArtifactError: There is no prepared set of this schema version; damage is a finding, not an error.
    """
    try:
        prepared = PreparedSet.open(data)
    except IntegrityError as error:
        return _report(data, None, [damaged_file(data, error)])
    findings = _damaged_side_files(prepared)
    if any(ITEMS in example for finding in findings for example in finding.examples):
        return _report(data, prepared, findings)
    items = prepared.read_items()
    recount = np.zeros(items.num_rows, np.int64)
    audits = _audit_partitions(prepared, items, recount, executor, report)
    findings += [finding for audited in audits.values() for finding in audited.findings]
    misplaced = {p: audited.misplaced for p, audited in audits.items() if audited.misplaced is not None}
    findings += audit_user_partitions(prepared, misplaced)
    findings += [*audit_items(items, recount), *audit_manifest(prepared.manifest)]
    audited = _report(data, prepared, findings, sum(audited.num_negatives for audited in audits.values()))
    report("passed" if audited.passed else f"{len(audited.findings)} faults found")
    return audited


def _damaged_side_files(prepared: PreparedSet) -> list[Finding]:
    """Checks the content of all files but the partitions', which their own tasks check."""
    partitions = {partition.file for partition in prepared.manifest.partitions}
    findings = []
    for name in prepared.files:
        if name not in partitions:
            try:
                prepared.verify(name)
            except IntegrityError as error:
                findings.append(damaged_file(prepared.location / name, error))
    return findings


def _audit_partitions(
    prepared: PreparedSet, items: pa.Table, recount: Int64s, executor: Executor, report: Reporter
) -> dict[int, PartitionAudit]:
    """Runs the tasks and adds their counts to `recount`; returns the audits without counts, in order of partition."""
    num_partitions = len(prepared.manifest.partitions)
    task = partial(_audit_one, prepared, executor.share(AuditedItems.of(prepared, items)))
    audits: dict[int, PartitionAudit] = {}
    for partition, audited in executor.map(task, num_partitions, stage=f"auditing {prepared.location}"):
        _add_counts(recount, audited.item_idx, audited.counts)
        audits[partition] = replace(audited, item_idx=_no_items(), counts=_no_items())
        report(f"checked {len(audits):,} of {num_partitions:,} partitions")
    return dict(sorted(audits.items()))


def _audit_one(prepared: PreparedSet, items: Shared[AuditedItems], partition: int) -> tuple[int, PartitionAudit]:
    step = -(-len(prepared.manifest.partitions) // MAX_NEGATIVE_PARTITIONS)
    return partition, audit_partition(prepared, partition, items.get(), draws_negatives=partition % step == 0)


def _add_counts(recount: Int64s, item_idx: Int64s, counts: Int64s) -> None:
    """Adds a partition's counts of distinct items in place; indices out of range are findings of the partition."""
    is_known = (item_idx >= 0) & (item_idx < len(recount))
    recount[item_idx[is_known]] += counts[is_known]


def _report(
    data: LocationLike, prepared: PreparedSet | None, findings: list[Finding], num_negatives: int = 0
) -> AuditReport:
    """Returns the report; a set whose manifest cannot be trusted counts as empty."""
    manifest = prepared.manifest if prepared else None
    return AuditReport(
        data=str(data),
        num_users=manifest.num_users if manifest else 0,
        num_interactions=manifest.num_training + manifest.num_validation + manifest.num_test if manifest else 0,
        num_negatives=num_negatives,
        findings=merge_findings(findings),
    )


def audit_partition(
    prepared: PreparedSet, partition: int, items: AuditedItems, *, draws_negatives: bool
) -> PartitionAudit:
    """Checks a partition: its file and, if that is intact, its users and one epoch of their negatives."""
    info = prepared.manifest.partitions[partition]
    try:
        prepared.verify(info.file)
        with prepared.on_disk(info.file) as path:
            table = pq.read_table(path)
    except (IntegrityError, pa.ArrowException, KeyError, OSError) as error:
        return PartitionAudit((damaged_file(prepared.location / info.file, error),))
    num_items, split = len(items.rank), prepared.manifest.split
    users = AuditedUsers(Histories.from_table(table), table["user_id"].combine_chunks(), num_items)
    findings = [
        *_index_gaps(table["user_idx"].to_numpy(), info),
        *_wrong_counts(users, info),
        *audit_histories(users),
        *_audit_split(users, split),
    ]
    is_known = all(np.all((part.item_idx >= 0) & (part.item_idx < num_items)) for part in users.parts().values())
    num_negatives = 0
    if is_known and split.get("time_unit_us") == MICROSECONDS:
        findings += audit_ties(users, items.rank, is_split_by_time=split["method"] not in ("random_per_user", "given"))
    if is_known and draws_negatives:
        rows, negatives = _draw_negatives(users, items.sampler)
        findings += audit_negatives(users, rows, negatives)
        num_negatives = negatives.size
    item_idx, counts = np.unique(users.histories.training.item_idx, return_counts=True)
    misplaced = misplaced_users(users.user_ids, partition, len(prepared.manifest.partitions))
    return PartitionAudit(tuple(findings), item_idx.astype(np.int64), counts.astype(np.int64), num_negatives, misplaced)


def damaged_file(path: LocationLike, error: Exception) -> Finding:
    """Returns the finding of a file that is missing, truncated or changed."""
    text = error.message if isinstance(error, IntegrityError) else f"{path}: {error}"
    return Finding(fault="damaged files", count=1, examples=(text,))


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
    return find("counts of partitions that differ from the manifest", np.arange(len(wrong)), wrong.__getitem__)


def _draw_negatives(users: AuditedUsers, sampler: NegativeSampler) -> tuple[Int64s, Any]:
    """Returns (users, negatives [n, N]) of all positives whose user has not seen the whole catalogue."""
    training = users.histories.training
    rows = training.rows()
    position = np.arange(len(rows)) - training.offsets[rows]
    excluded = ExcludedItems.from_pairs(users.num_items, training.num_users, rows, training.item_idx)
    has_allowed = excluded.num_allowed(rows) > 0
    rows, position = rows[has_allowed], position[has_allowed]
    user_idx = rows + users.histories.first_user_idx
    return rows, sampler.draw(EPOCH, user_idx, position, excluded, rows)
