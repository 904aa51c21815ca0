"""Audits a prepared set with a Ray Data task per partition; only findings and item counts come back.

Does not know what the checks are: see `ray_recsys.core.inspecting.audit` and its siblings.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from ray_recsys.core.histories import Int64s
from ray_recsys.core.inspecting.audit import (
    AuditReport,
    Finding,
    add_counts,
    audit_items,
    audit_manifest,
    merge_findings,
)
from ray_recsys.core.inspecting.audit_partition import audit_partition, damaged_file
from ray_recsys.core.prepared import ITEMS, PreparedSet
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.errors import IntegrityError
from ray_recsys.progress import Reporter, silent

NUM_NEGATIVE_PARTITIONS = 8
"""Partitions whose negatives are drawn, at most; spread evenly over all."""
_INTEGERS = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    {
        "partition": pa.int64(),
        "findings": pa.list_(pa.string()),
        "item_idx": _INTEGERS,
        "counts": _INTEGERS,
        "num_negatives": pa.int64(),
    }
)


def audit(data: Path, *, report: Reporter = silent) -> AuditReport:
    """Returns what is wrong with a prepared set: leakage, damage, disorder, counts that do not hold.

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
    num_negatives, partition_findings = _audit_partitions(prepared, items, recount, report)
    findings += [*partition_findings, *audit_items(items, recount), *audit_manifest(prepared.manifest)]
    audited = _report(data, prepared, findings, num_negatives)
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
) -> tuple[int, list[Finding]]:
    """Runs the tasks; adds their counts to `recount` and returns their findings in order of partition."""
    num_partitions = len(prepared.manifest.partitions)
    step = -(-num_partitions // NUM_NEGATIVE_PARTITIONS)
    num_items = items.num_rows
    counts = items["count"].to_numpy().astype(np.int64)
    sampler = ray.put(NegativeSampler.from_recipe(prepared.manifest.recipe, counts))

    def check(batch: dict[str, npt.NDArray[Any]]) -> pa.Table:
        (partition,) = batch["id"].tolist()
        draws = ray.get(sampler) if partition % step == 0 else None
        audited = audit_partition(prepared, partition, num_items, draws)
        row = {
            "partition": partition,
            "findings": [finding.model_dump_json() for finding in audited.findings],
            "item_idx": audited.item_idx,
            "counts": audited.counts,
            "num_negatives": audited.num_negatives,
        }
        return pa.Table.from_pylist([row], schema=_SCHEMA)

    tasks = ray.data.range(num_partitions, override_num_blocks=num_partitions).map_batches(check, batch_size=1)
    num_negatives = 0
    found: dict[int, list[str]] = {}
    block: pa.Table
    for block in tasks.iter_batches(batch_size=None, batch_format="pyarrow"):
        add_counts(recount, _flat(block["item_idx"]), _flat(block["counts"]))
        num_negatives += sum(block["num_negatives"].to_pylist())
        found.update(zip(block["partition"].to_pylist(), block["findings"].to_pylist(), strict=True))
        report(f"checked {len(found):,} of {num_partitions:,} partitions")
    texts = [text for partition in sorted(found) for text in found[partition]]
    return num_negatives, [Finding.model_validate_json(text) for text in texts]


def _flat(column: pa.ChunkedArray) -> Int64s:
    values: Int64s = column.combine_chunks().flatten().to_numpy()
    return values


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
