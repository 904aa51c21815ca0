"""Audit of users: order, duplicates, leakage between training and held-out items, drawn negatives, partitions.

Each check is vectorised over the users' interactions. Shape letters: U users, n interactions, I items, N negatives.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.inspecting.audit_findings import Finding, find, is_repeated_id
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.ids import bucket_of, hash_ids, partition_bounds


@dataclass(frozen=True, slots=True)
class AuditedUsers:
    """Histories of U users, their ids, and the number of items; describes findings among them."""

    histories: Histories
    user_ids: pa.Array
    num_items: int

    def parts(self) -> dict[str, Interactions]:
        """Returns the interactions of each part, by its name."""
        histories = self.histories
        return {"training": histories.training, "validation": histories.validation, "test": histories.test}

    def name(self, row: int) -> str:
        """Returns a readable description of the user at an index below U."""
        return f"user_idx {self.histories.first_user_idx + row} ({self.user_ids[row].as_py()!r})"

    def keys(self, part: Interactions) -> Int64s:
        """Returns each interaction's (user, item) pair as one integer, int64[n]."""
        keys: Int64s = part.rows() * self.num_items + part.item_idx
        return keys

    def pairs(self, keys: Int64s) -> Callable[[int], str]:
        """Returns a function that describes the i-th of some pairs."""
        return lambda i: f"{self.name(int(keys[i]) // self.num_items)}, item_idx {int(keys[i]) % self.num_items}"

    def values(self, part: Interactions, values: npt.NDArray[Any], unit: str) -> Callable[[int], str]:
        """Returns a function that describes a part's i-th interaction by its user and a value."""
        rows = part.rows()
        return lambda i: f"{self.name(int(rows[i]))}: {unit} {values[i]}"


def audit_histories(users: AuditedUsers) -> list[Finding]:
    """Runs the checks that apply to every split; if item indices are out of range, nothing else is checked."""
    unknown = [finding for name, part in users.parts().items() for finding in _unknown_items(users, name, part)]
    if unknown:
        return unknown
    keys = {name: np.sort(users.keys(part)) for name, part in users.parts().items()}
    findings = []
    for fitted, held_out in (("training", "validation"), ("training", "test"), ("validation", "test")):
        leaked = np.unique(keys[held_out][is_in(keys[held_out], keys[fitted])])
        findings += find(f"{fitted} pairs in the {held_out}", np.arange(len(leaked)), users.pairs(leaked))
    for name, part in users.parts().items():
        copies = keys[name][1:][keys[name][1:] == keys[name][:-1]]
        findings += find(f"repeated pairs in the {name}", np.arange(len(copies)), users.pairs(copies))
        findings += _steps_back(users, name, part)
    num_training = users.histories.training.lengths
    findings += find("users without training interactions", num_training == 0, users.name)
    return findings + find("user ids that are null or repeated", is_repeated_id(users.user_ids), users.name)


def audit_negatives(users: AuditedUsers, rows: Int64s, negatives: npt.NDArray[Any]) -> list[Finding]:
    """Checks that no drawn negative is a training item of its user.

    Args:
        users: The users.
        rows: User of each positive, as an index below U, int64[n].
        negatives: Items drawn for each positive, int[n, N].
    """
    drawn = (rows[:, None] * users.num_items + negatives).ravel()
    hits = drawn[is_in(drawn, np.sort(users.keys(users.histories.training)))]
    return find("negatives that hit a positive", np.arange(len(hits)), users.pairs(hits))


def audit_leave_one_out(users: AuditedUsers) -> list[Finding]:
    """Checks that a user has at most one validation and one test item, neither earlier than what precedes it."""
    findings = []
    latest = _latest(users.histories.training)
    for name in ("validation", "test"):
        part = users.parts()[name]
        findings += find(f"users with more than one {name} item", part.lengths > 1, users.name)
        if part.timestamp_s is None:
            continue
        fault = f"{name} items earlier than a preceding interaction of their user"
        findings += find(fault, part.timestamp_s < latest[part.rows()], users.values(part, part.timestamp_s, "second"))
        latest = np.maximum(latest, _latest(part))
    return findings


def audit_ties(users: AuditedUsers, item_rank: Int64s, *, is_split_by_time: bool) -> list[Finding]:
    """Checks that a user's items of the same time are in order of item id; without times, all items.

    Args:
        users: Users of a log in whole seconds: finer times, which histories do not hold, would decide before ids.
        item_rank: Rank of each item index in the order of ids, int64[I].
        is_split_by_time: Whether held-out items follow the training items, so that the order spans the parts.
    """
    parts = users.parts().values()
    findings = []
    for part in [_joined(*parts)] if is_split_by_time else parts:
        rows, ranks = part.rows(), item_rank[part.item_idx]
        is_tie = rows[1:] == rows[:-1]
        if part.timestamp_s is not None:
            is_tie &= part.timestamp_s[1:] == part.timestamp_s[:-1]
        findings += find(
            "simultaneous items that are not in order of item id",
            is_tie & (ranks[1:] < ranks[:-1]),
            users.values(part, part.item_idx, "misplaced item_idx"),
        )
    return findings


def _joined(*parts: Interactions) -> Interactions:
    """Returns the parts of each user joined into one."""
    rows = np.concatenate([part.rows() for part in parts])
    order = np.argsort(rows, kind="stable")
    times = [part.timestamp_s for part in parts if part.timestamp_s is not None]
    return Interactions(
        offsets=np.sum([part.offsets for part in parts], axis=0),
        item_idx=np.concatenate([part.item_idx for part in parts])[order],
        timestamp_s=np.concatenate(times)[order] if times else None,
    )


def audit_global_time(users: AuditedUsers, validation_from_s: float, test_from_s: float) -> list[Finding]:
    """Checks that each part lies in its own period; histories hold seconds, rounded down, while cuts may be finer."""
    periods = {
        "training": (None, validation_from_s),
        "validation": (validation_from_s, test_from_s),
        "test": (test_from_s, None),
    }
    findings = []
    for name, (start_s, end_s) in periods.items():
        part = users.parts()[name]
        if part.timestamp_s is None:
            continue
        describe = users.values(part, part.timestamp_s, "second")
        if start_s is not None:
            is_early = part.timestamp_s < math.floor(start_s)
            findings += find(f"{name} times before the cut at {start_s} s", is_early, describe)
        if end_s is not None:
            findings += find(f"{name} times at or after the cut at {end_s} s", part.timestamp_s >= end_s, describe)
    return findings


def is_in(keys: Int64s, sorted_keys: Int64s) -> Bools:
    """Returns whether each key is among the sorted ones."""
    if not len(sorted_keys):
        return np.zeros(len(keys), np.bool_)
    positions = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return np.asarray(sorted_keys[positions] == keys)


def _unknown_items(users: AuditedUsers, name: str, part: Interactions) -> list[Finding]:
    is_unknown = (part.item_idx < 0) | (part.item_idx >= users.num_items)
    fault = f"item indices of the {name} outside the vocabulary"
    return find(fault, is_unknown, users.values(part, part.item_idx, "item_idx"))


def _steps_back(users: AuditedUsers, name: str, part: Interactions) -> list[Finding]:
    if part.timestamp_s is None:
        return []
    rows, times = part.rows(), part.timestamp_s
    is_back = (times[1:] < times[:-1]) & (rows[1:] == rows[:-1])
    describe = users.values(part, times, "second")
    return find(f"{name} histories out of order", is_back, lambda i: f"{describe(i)} comes before {times[i + 1]}")


def _latest(part: Interactions) -> Int64s:
    """Returns each user's latest time, int64[U]; the smallest integer where there is none."""
    times = np.full(part.num_users, np.iinfo(np.int64).min, np.int64)
    has_any = part.lengths > 0
    if part.timestamp_s is not None and has_any.any():
        times[has_any] = np.maximum.reduceat(part.timestamp_s, part.offsets[:-1][has_any])
    return times


def home_partitions(user_ids: pa.Array, num_partitions: int) -> Int64s:
    """Returns the partition that each id belongs to, int64[U]; no id is null."""
    bounds = partition_bounds(num_partitions)
    homes: Int64s = np.searchsorted(bounds, bucket_of(hash_ids(user_ids)), side="right") - 1
    return homes


def misplaced_users(user_ids: pa.Array, partition: int, num_partitions: int) -> pa.Array:
    """Returns those ids of a partition that belong to another."""
    known = user_ids.drop_null().unique()
    return known.filter(pa.array(home_partitions(known, num_partitions) != partition))


def audit_user_partitions(prepared: PreparedSet, misplaced: Mapping[int, pa.Array]) -> list[Finding]:
    """Checks that no id is in two partitions, although no process sees all users.

    An id's partition follows from its hash, so an id that is in two partitions is misplaced in at least one of them.
    Only misplaced ids are searched for in other partitions.

    Args:
        prepared: The prepared set.
        misplaced: Misplaced ids of every readable partition.
    """
    num_partitions = len(prepared.manifest.partitions)
    holders = Counter(user_id for ids in misplaced.values() for user_id in ids.to_pylist())
    homes: dict[int, list[object]] = {}
    for ids in misplaced.values():
        for home, user_id in zip(home_partitions(ids, num_partitions).tolist(), ids.to_pylist(), strict=True):
            homes.setdefault(home, []).append(user_id)
    for home in homes.keys() & misplaced.keys():
        ids = prepared.read_user_ids(home)
        holders.update(ids.filter(pc.is_in(ids, pa.array(homes[home], ids.type))).unique().to_pylist())
    repeated = sorted((str(user_id), count) for user_id, count in holders.items() if count > 1)
    return find(
        "user ids in more than one partition",
        np.arange(len(repeated)),
        lambda i: f"user_id {repeated[i][0]!r} in {repeated[i][1]} partitions",
    )
