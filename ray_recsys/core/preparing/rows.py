"""Interactions of a partition's users as columns; sorting, deduplication and filters.

Results depend on the content of the rows alone, never on their order. Shape letters: n rows, U users of the partition,
I items of the log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Bools, Float32s, Int64s, Integers, UInt64s

Rule = Literal["first", "last", "highest_rating", "count"]
TRAINING, VALIDATION, TEST = 0, 1, 2
_WORD_BITS = 64
_STORED_TYPES = {
    "user": np.int32,
    "item": np.int32,
    "time": np.int64,
    "rating": np.float32,
    "repetition": np.int32,
    "label": np.int8,
}


@dataclass(frozen=True, slots=True)
class UserRows:
    """Columns [n] of a partition; None: the log has no such column, or no step has set it yet."""

    user: Integers
    """Rank of the user's id among the partition's."""
    item: Integers
    """Code of the item: the rank of its id among the log's."""
    time: Integers | None = None
    """In the log's unit since 1970."""
    rating: Float32s | None = None
    repetition: Integers | None = None
    label: Integers | None = None
    """TRAINING, VALIDATION or TEST; None until the split: all rows then count as training."""

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: npt.NDArray[Any] | slice) -> Self:
        """Returns the rows of an index array, a mask or a slice."""
        columns = {name: values[rows] for name, values in self.columns().items()}
        return replace(self, **columns)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Returns the existing columns by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: column for name, column in values.items() if column is not None}

    def stored(self) -> Self:
        """Returns the rows in the types in which they travel between tasks."""
        columns = {name: values.astype(_STORED_TYPES[name], copy=False) for name, values in self.columns().items()}
        return replace(self, **columns)

    def is_training(self) -> Bools:
        """Returns whether each row is a training interaction, bool[n]."""
        return np.ones(len(self), np.bool_) if self.label is None else np.asarray(self.label == TRAINING)


class Kept(NamedTuple):
    """The rows that a rule keeps, and those that it drops, by reason."""

    rows: UserRows
    dropped: Mapping[str, UserRows]


def deduplicate(rows: UserRows, rule: Rule) -> Kept:
    """Returns one row per (user, item) pair, in order of user and item.

    Rows of the same time: `first` and `last` keep the highest rating. `highest_rating` keeps the latest of the highest.
    `count` keeps the last, with the number of the pair's rows as its repetition. With labels (a split by time), a pair
    belongs to the first period that has it: its later rows are dropped.
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
        kept = replace(kept, repetition=np.diff(np.append(np.flatnonzero(starts), len(rows))))
    return Kept(kept, dropped)


def in_time_order(rows: UserRows) -> UserRows:
    """Returns the rows by user, then time, then item; without times by user and item."""
    return _sorted(rows, ("user", "time", "item", "rating", "repetition", "label"))


def filter_rows(rows: UserRows, num_users: int, is_kept_item: Bools, min_interactions_per_user: int) -> Kept:
    """Returns the rows without rare items, then without users who have too few left; a k-core is its fixed point.

    Only training rows are counted and dropped, so that rows held out by a time cut influence nothing.

    Args:
        rows: Deduplicated rows of complete users.
        num_users: U.
        is_kept_item: Whether an item has enough interactions over all partitions, bool[I].
        min_interactions_per_user: Minimum number of a user's interactions with kept items.
    """
    is_training = rows.is_training()
    is_rare_item = is_training & ~is_kept_item[rows.item]
    is_left = is_training & ~is_rare_item
    per_user = np.bincount(rows.user[is_left], minlength=num_users)
    is_rare_user = is_left & (per_user < min_interactions_per_user)[rows.user]
    dropped = {"rare_item": rows.take(is_rare_item), "rare_user": rows.take(is_rare_user)}
    kept = rows.take(~(is_rare_item | is_rare_user))
    return Kept(kept, {reason: of_reason for reason, of_reason in dropped.items() if len(of_reason)})


def _significance(rule: Rule) -> tuple[str, ...]:
    last = ("rating", "time") if rule == "highest_rating" else ("time", "rating")
    return ("user", "item", "label", *last, "repetition")


def _sorted(rows: UserRows, significance: Sequence[str], *, is_rating_descending: bool = False) -> UserRows:
    columns = rows.columns()
    if rows.rating is not None:
        values = np.unique(rows.rating + np.float32(0))  # the sum turns -0 into 0
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


def sort_columns(columns: Sequence[Integers]) -> list[Int64s]:
    """Returns the rows, one int64[n] per column, sorted by the first column, ties by the second, and so on.

    The columns are packed into as few 64-bit words as possible, mostly one, which a single sort puts in order. They are
    the whole row: rows that compare equal are equal, so the order of the input never shows.

    Args:
        columns: Integers [n] each, most significant first; each column's range must fit 64 bits.
    """
    wide = [np.asarray(column, np.int64) for column in columns]
    if len(wide[0]) == 0:
        return wide
    lows = [int(column.min()) for column in wide]
    widths = [(int(column.max()) - low).bit_length() for column, low in zip(wide, lows, strict=True)]
    groups = _groups_of_one_word(widths)
    words = [_pack([wide[i] for i in group], [lows[i] for i in group], [widths[i] for i in group]) for group in groups]
    if len(words) == 1:
        words[0].sort()
    else:
        order = np.lexsort(words[::-1])
        words = [word[order] for word in words]
    result: list[Int64s] = []
    for word, group in zip(words, groups, strict=True):
        result += _unpack(word, [lows[i] for i in group], [widths[i] for i in group])
    return result


def _groups_of_one_word(widths: Sequence[int]) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    used = 0
    for index, width in enumerate(widths):
        if used + width > _WORD_BITS:
            groups.append([])
            used = 0
        groups[-1].append(index)
        used += width
    return groups


def _pack(columns: Sequence[Int64s], lows: Sequence[int], widths: Sequence[int]) -> UInt64s:
    word = np.zeros(len(columns[0]), np.uint64)
    for column, low, width in zip(columns, lows, widths, strict=True):
        if width == 0:
            continue
        if width < _WORD_BITS:
            word <<= np.uint64(width)
        # Two's complement: the difference is correct modulo 2^64 even where int64 would overflow.
        word |= column.view(np.uint64) - np.uint64(low % 2**64)
    return word


def _unpack(word: UInt64s, lows: Sequence[int], widths: Sequence[int]) -> list[Int64s]:
    columns: list[Int64s] = []
    for low, width in zip(reversed(lows), reversed(widths), strict=True):
        values = word & np.uint64(2**width - 1)
        values += np.uint64(low % 2**64)
        columns.append(values.view(np.int64))
        if 0 < width < _WORD_BITS:
            word = word >> np.uint64(width)
    return columns[::-1]
