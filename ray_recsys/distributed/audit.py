"""Audits a prepared set with a Ray Data task per partition; only findings, item counts and ids out of place come back.

Does not know what the checks are: see `ray_recsys.core.inspecting.audit` and its siblings.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from ray_recsys.config import ClusterRecipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.inspecting.audit import (
    AuditReport,
    Finding,
    add_counts,
    audit_items,
    audit_manifest,
    merge_findings,
)
from ray_recsys.core.inspecting.audit_partition import PartitionAudit, audit_partition, damaged_file
from ray_recsys.core.inspecting.audit_users import audit_user_partitions
from ray_recsys.core.prepared import ITEMS, PreparedSet
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.distributed.executor import run_tasks
from ray_recsys.distributed.resources import DEFAULT_CLUSTER, require_cpu
from ray_recsys.errors import IntegrityError
from ray_recsys.progress import Reporter, silent

NUM_NEGATIVE_PARTITIONS = 8
"""Partitions whose negatives are drawn, at most; spread evenly over all."""


def audit(data: Path, *, cluster: ClusterRecipe = DEFAULT_CLUSTER, report: Reporter = silent) -> AuditReport:
    """Returns what is wrong with a prepared set: leakage, damage, disorder, counts that do not hold.

    Raises:
        ArtifactError: There is no prepared set of this schema version; damage is a finding, not an error.
        ClusterError: No CPU is free.
    """
    try:
        prepared = PreparedSet.open(data)
    except IntegrityError as error:
        return _report(data, None, [damaged_file(data, error)])
    require_cpu("audit", cluster, report=report)
    findings = _damaged_side_files(prepared)
    if any(ITEMS in example for finding in findings for example in finding.examples):
        return _report(data, prepared, findings)
    items = prepared.read_items()
    recount = np.zeros(items.num_rows, np.int64)
    audits = _audit_partitions(prepared, items, recount, report)
    findings += [finding for audited in audits.values() for finding in audited.findings]
    misplaced = {p: audited.misplaced for p, audited in audits.items() if audited.misplaced is not None}
    findings += audit_user_partitions(prepared, misplaced)
    findings += [*audit_items(items, recount), *audit_manifest(prepared.manifest)]
    audited = _report(data, prepared, findings, sum(audited.num_negatives for audited in audits.values()))
    report("passed" if audited.passed else f"{len(audited.findings)} faults found")
    return audited


def _damaged_side_files(prepared: PreparedSet) -> list[Finding]:
    partitions = {partition.file for partition in prepared.manifest.partitions}
    findings = []
    for name in prepared.files:
        if name not in partitions:
            try:
                prepared.verify(name)
            except IntegrityError as error:
                findings.append(damaged_file(prepared.path / name, error))
    return findings


def _audit_partitions(
    prepared: PreparedSet, items: pa.Table, recount: Int64s, report: Reporter
) -> dict[int, PartitionAudit]:
    """Runs the tasks and adds their counts to `recount`; returns their audits in order of partition, without counts."""
    num_partitions = len(prepared.manifest.partitions)
    counts = items["count"].to_numpy().astype(np.int64)
    item_rank = np.empty(items.num_rows, np.int64)
    item_rank[pc.sort_indices(items["item_id"]).to_numpy()] = np.arange(items.num_rows)
    shared = ray.put((item_rank, NegativeSampler.from_recipe(prepared.manifest.recipe, counts)))
    step = -(-num_partitions // NUM_NEGATIVE_PARTITIONS)

    def check(partition: int) -> tuple[int, PartitionAudit]:
        item_rank, sampler = ray.get(shared)
        return partition, audit_partition(prepared, partition, item_rank, None if partition % step else sampler)

    audits: dict[int, PartitionAudit] = {}
    for partition, audited in run_tasks(check, num_partitions, stage=f"auditing {prepared.path}"):
        add_counts(recount, audited.item_idx, audited.counts)
        audits[partition] = replace(audited, item_idx=audited.item_idx[:0], counts=audited.counts[:0])
        report(f"checked {len(audits):,} of {num_partitions:,} partitions")
    return dict(sorted(audits.items()))


def _report(data: Path, prepared: PreparedSet | None, findings: list[Finding], num_negatives: int = 0) -> AuditReport:
    """A set whose manifest cannot be trusted counts as empty."""
    manifest = prepared.manifest if prepared else None
    return AuditReport(
        data=str(data),
        num_users=manifest.num_users if manifest else 0,
        num_interactions=manifest.num_training + manifest.num_validation + manifest.num_test if manifest else 0,
        num_negatives=num_negatives,
        findings=merge_findings(findings),
    )
