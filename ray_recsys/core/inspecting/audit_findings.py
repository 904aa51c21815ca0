"""Findings of an audit, and the checks that involve no user: manifest, item table, item counts."""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, computed_field

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.prepared import PreparedManifest

MAX_EXAMPLES = 10


class Finding(BaseModel):
    """A fault of a prepared set: how often it occurs, and a few examples."""

    model_config = ConfigDict(frozen=True)

    fault: str
    """A plural that the count applies to: `training pairs in the test`."""
    count: int
    examples: tuple[str, ...]
    """Up to ten."""


class AuditReport(BaseModel):
    """Scope and findings of an audit, which passes if there are no findings."""

    model_config = ConfigDict(frozen=True)

    data: str
    num_users: int
    num_interactions: int
    num_negatives: int
    """Negatives that were drawn and compared with their user's positives."""
    findings: tuple[Finding, ...]

    @computed_field  # type: ignore[prop-decorator]  # mypy does not know decorated properties
    @property
    def passed(self) -> bool:
        """Whether there are no findings."""
        return not self.findings


def find(fault: str, faulty: Int64s | Bools, describe: Callable[[int], str]) -> list[Finding]:
    """Returns one finding, or none if nothing is faulty.

    Args:
        fault: What is wrong.
        faulty: Indices or a mask of the elements that are.
        describe: Returns a readable description of the element at an index.
    """
    indices = np.flatnonzero(faulty) if faulty.dtype == np.bool_ else faulty
    if not len(indices):
        return []
    examples = tuple(describe(int(i)) for i in indices[:MAX_EXAMPLES])
    return [Finding(fault=fault, count=len(indices), examples=examples)]


def merge_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Returns one finding per fault, with the sum of the counts and the first examples."""
    merged: dict[str, Finding] = {}
    for new in findings:
        old = merged.get(new.fault)
        if old is None:
            merged[new.fault] = new
        else:
            examples = (old.examples + new.examples)[:MAX_EXAMPLES]
            merged[new.fault] = Finding(fault=new.fault, count=old.count + new.count, examples=examples)
    return tuple(merged.values())


def audit_manifest(manifest: PreparedManifest) -> list[Finding]:
    """Checks that the manifest's counts add up and its partitions are consecutive."""
    sums: list[tuple[str, int, str, int]] = [
        ("rows_in", manifest.rows_in, "rows kept + dropped", manifest.rows_kept + sum(manifest.rows_dropped.values())),
    ]
    for name in ("num_users", "num_training", "num_validation", "num_test"):
        total = sum(getattr(partition, name) for partition in manifest.partitions)
        sums.append((name, getattr(manifest, name), f"sum over the partitions' {name}", total))
    wrong = [f"{left} = {a:,}, but {right} = {b:,}" for left, a, right, b in sums if a != b]
    findings = find("counts of the manifest that do not add up", np.arange(len(wrong)), wrong.__getitem__)
    sizes = np.array([partition.num_users for partition in manifest.partitions], np.int64)
    first = np.array([partition.first_user_idx for partition in manifest.partitions], np.int64)
    expected = np.cumsum(sizes) - sizes
    return findings + find(
        "partitions whose first user index leaves a gap or an overlap",
        (first != expected) & (sizes > 0),
        lambda p: f"{manifest.partitions[p].file}: first_user_idx {first[p]:,} instead of {expected[p]:,}",
    )


def audit_items(items: pa.Table, recount: Int64s) -> list[Finding]:
    """Checks the item table: indices, order, distinct ids, and counts against those of the histories.

    Args:
        items: Row i is the item with index i.
        recount: Number of training interactions of each item in the histories, int64[I].
    """
    item_idx, counts = (items[name].to_numpy().astype(np.int64) for name in ("item_idx", "count"))
    ids = items["item_id"].combine_chunks()

    def name(i: int) -> str:
        return f"item_idx {i} ({ids[i].as_py()!r})"

    is_tie = counts[1:] == counts[:-1]
    is_unordered = ~np.asarray(pc.fill_null(pc.less(ids[:-1], ids[1:]), fill_value=False)) if len(ids) > 1 else is_tie
    copies = np.flatnonzero(is_repeated_id(ids))
    return [
        *find(
            "items whose index is not their row",
            item_idx != np.arange(len(item_idx)),
            lambda i: f"row {i}: item_idx {item_idx[i]}",
        ),
        *find(
            "items that are not in order of descending count, ties by id",
            (counts[1:] > counts[:-1]) | (is_tie & is_unordered),
            lambda i: f"{name(i)} with count {counts[i]:,} before {name(i + 1)} with count {counts[i + 1]:,}",
        ),
        *find("item ids that are null or repeated", copies, name),
        *find("items without training interactions", recount == 0, name),
        *find(
            "items whose count differs from the training histories",
            (recount != counts) & (recount > 0),
            lambda i: f"{name(i)}: count {counts[i]:,}, but {recount[i]:,} in the histories",
        ),
    ]


def is_repeated_id(ids: pa.Array) -> Bools:
    """Returns whether each id is null or has occurred before."""
    codes = ids.dictionary_encode().indices
    is_null = np.asarray(codes.is_null())
    values = np.asarray(pc.fill_null(codes, fill_value=0)).astype(np.int64)
    _, first = np.unique(values, return_index=True)
    is_repeated = np.ones(len(values), np.bool_)
    is_repeated[first] = False
    is_repeated |= is_null
    return is_repeated
