"""One interaction per (user, item) pair: which is kept depends on the rows' content alone, never on their order.

Ties: `first` and `last` of the same moment keep the higher rating; `highest_rating` keeps the latest of the highest.
A pair that was met before a time cut is not held out after it: it lives in the first period that has it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ray_recsys.core.arrays import Bools
from ray_recsys.core.packed_sort import sort_columns
from ray_recsys.core.preparing.user_rows import UserRows

Rule = Literal["first", "last", "highest_rating", "count"]


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The kept rows, in order of user, item; and those dropped, by reason."""

    rows: UserRows
    dropped: dict[str, UserRows]


def deduplicate(rows: UserRows, rule: Rule) -> Deduplicated:
    """Returns one row per (user, item), the periods of a time split (`rows.label`) one after the other.

    Under `count` the last is kept, and its repetition is the number of the pair's rows.
    """
    rows = _sorted(rows, _significance(rule), is_rating_descending=rule == "first")
    dropped = {}
    if rows.label is not None:
        starts = _is_start(rows)
        first_period = rows.label[starts][np.cumsum(starts) - 1]
        is_late = rows.label != first_period
        if is_late.any():
            dropped["repeated_after_cut"] = rows.take(is_late)
            rows = rows.take(~is_late)
    starts = _is_start(rows)
    is_kept = starts if rule == "first" else np.append(starts[1:], np.True_)[: len(rows)]
    kept = rows if is_kept.all() else rows.take(is_kept)
    if len(kept) < len(rows):
        dropped["repeated" if rule == "count" else "duplicate"] = rows.take(~is_kept)
    if rule == "count":
        repetition = np.diff(np.append(np.flatnonzero(starts), len(rows)))
        kept = UserRows(kept.user, kept.item, kept.time, kept.rating, repetition, kept.label)
    return Deduplicated(kept, dropped)


def in_time_order(rows: UserRows) -> UserRows:
    """Returns the rows by user, then time, then item; without times by user and item."""
    return _sorted(rows, ("user", "time", "item", "rating", "repetition", "label"))


def _significance(rule: Rule) -> tuple[str, ...]:
    last = ("rating", "time") if rule == "highest_rating" else ("time", "rating")
    return ("user", "item", "label", *last, "repetition")


def _sorted(rows: UserRows, significance: Sequence[str], *, is_rating_descending: bool = False) -> UserRows:
    columns = rows.columns()
    if rows.rating is not None:
        values = np.unique(rows.rating + np.float32(0))  # the sum makes -0 a 0
        if is_rating_descending:
            values = values[::-1]
            columns["rating"] = np.searchsorted(-values, -rows.rating)
        else:
            columns["rating"] = np.searchsorted(values, rows.rating)
    names = [name for name in significance if name in columns]
    result: dict[str, Any] = dict(zip(names, sort_columns([columns[name] for name in names]), strict=True))
    if rows.rating is not None:
        result["rating"] = values[result["rating"]]
    return UserRows(**result)


def _is_start(rows: UserRows) -> Bools:
    """Returns whether each row is the first of its (user, item) pair."""
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = (rows.user[1:] != rows.user[:-1]) | (rows.item[1:] != rows.item[:-1])
    return starts
