"""Rows of a log checked and typed: each good row becomes an interaction, each bad one is counted under one reason.

The reason is the first that applies: null_user, null_item, the recipe's drop rules in order, bad_timestamp, bad_rating.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.config import DropRule, InputRecipe
from ray_recsys.core.arrays import Bools, Float32s, Float64s, Int32s, Int64s
from ray_recsys.core.preparing.timestamps import parse_times
from ray_recsys.core.vocabulary import are_integers
from ray_recsys.errors import DataError

IdKind = Literal["integer", "text"]
"""`text`, unless every id of the log is an integer (in a text file: in plain decimal form)."""
MAX_EXAMPLES = 100
Example = dict[str, Any]
PLACE = "place"
"""Key of the log that a dropped row came from, in the examples: kept for readers of existing prepared sets."""


class DropLog:
    """Dropped rows: counts by reason, and up to `MAX_EXAMPLES` examples of each."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[Example]] = {}

    @classmethod
    def merged(cls, logs: Iterable["DropLog"]) -> Self:
        """Returns the sum of several logs, with the first examples in their order."""
        total = cls()
        for log in logs:
            total.merge(log)
        return total

    def add(self, reason: str, count: int, examples: Iterable[Example] = ()) -> None:
        """Counts `count` more rows under a reason."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            kept = self.examples.setdefault(reason, [])
            kept.extend(example for example, _ in zip(examples, range(MAX_EXAMPLES - len(kept)), strict=False))

    def merge(self, other: "DropLog") -> None:
        """Adds another log's counts and examples."""
        for reason, count in other.counts.items():
            self.add(reason, count, other.examples[reason])

    @property
    def total(self) -> int:
        """Number of dropped rows."""
        return sum(self.counts.values())

    def describe(self) -> str:
        """Returns the counts as text, e.g. `12 rare_item, 3 rare_user`, in descending order."""
        ordered = sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))
        return ", ".join(f"{count:,} {reason}" for reason, count in ordered)

    def write_examples(self, directory: Path) -> None:
        """Writes `<reason>.jsonl` for every reason."""
        directory.mkdir(exist_ok=True)
        for reason, examples in self.examples.items():
            lines = [json.dumps(example, ensure_ascii=False, default=str) + "\n" for example in examples]
            (directory / f"{reason}.jsonl").write_text("".join(lines), encoding="utf8")


@dataclass(frozen=True, slots=True)
class IdColumn:
    """Ids of rows, as codes int32[n] into a dictionary of distinct ids."""

    codes: Int32s
    dictionary: pa.Array
    kind: IdKind


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """The good rows of a block, and a log of the others."""

    users: IdColumn
    items: IdColumn
    time_us: Int64s | None
    rating: Float32s | None
    drops: DropLog

    def __len__(self) -> int:
        return len(self.users.codes)


def check_rows(table: pa.Table, recipe: InputRecipe, *, is_text_file: bool, source: str) -> CheckedRows:
    """Returns the good rows of a block of a log.

    Args:
        table: The columns that the recipe names.
        recipe: Names of columns, time unit, drop rules.
        is_text_file: Whether the file is text without types, so that an id of digits is an integer.
        source: Names the file in errors and examples.

    Raises:
        DataError: A column's type does not fit its role in the recipe.
    """
    users = _id_values(_column(table, recipe.user_column), f"{source}, column {recipe.user_column!r}")
    items = _id_values(_column(table, recipe.item_column), f"{source}, column {recipe.item_column!r}")
    reasons = _Reasons(table.num_rows)
    reasons.mark("null_user", _nulls(users))
    reasons.mark("null_item", _nulls(items))
    for rule in recipe.drop:
        reasons.mark(rule.reason, _meets(_column(table, rule.column), rule))
    time_us, rating = None, None
    if recipe.timestamp_column is not None:
        name = recipe.timestamp_column
        time_us, is_time = parse_times(_column(table, name), recipe.timestamp_unit, f"{source}, column {name!r}")
        reasons.mark("bad_timestamp", ~is_time)
    if recipe.rating_column is not None:
        name = recipe.rating_column
        rating = _numbers(_column(table, name), f"{source}, column {name!r}").astype(np.float32)
        reasons.mark("bad_rating", ~np.isfinite(rating))
    drops = reasons.drop_log(table, source)
    if drops.total:
        kept = reasons.is_good()
        users, items = users.filter(pa.array(kept)), items.filter(pa.array(kept))
        time_us = None if time_us is None else time_us[kept]
        rating = None if rating is None else rating[kept]
    return CheckedRows(_encode(users, is_text_file), _encode(items, is_text_file), time_us, rating, drops)


class _Reasons:
    """The first reason that applies to each row."""

    def __init__(self, num_rows: int) -> None:
        self._codes = np.zeros(num_rows, np.int16)
        self._names = [""]

    def mark(self, reason: str, applies: Bools) -> None:
        if applies.any():
            self._names.append(reason)
            self._codes[applies & (self._codes == 0)] = len(self._names) - 1

    def is_good(self) -> Bools:
        return np.asarray(self._codes == 0)

    def drop_log(self, table: pa.Table, source: str) -> DropLog:
        drops = DropLog()
        for code, name in enumerate(self._names[1:], start=1):
            rows = np.flatnonzero(self._codes == code)
            drops.add(name, len(rows), _examples(table, rows[:MAX_EXAMPLES], source))
        return drops


def _examples(table: pa.Table, rows: Int64s, source: str) -> list[Example]:
    records = table.take(pa.array(rows)).to_pylist() if len(rows) else []
    return [{**{k: _plain(v) for k, v in record.items()}, PLACE: source} for record in records]


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)  # JSON has no NaN
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table[name].combine_chunks()
    return column.chunk(0) if isinstance(column, pa.ChunkedArray) else column


def _id_values(column: pa.Array, source: str) -> pa.Array:
    """Returns ids as int64, string or a dictionary of strings; NaN becomes null."""
    dtype = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        is_encoded = pa.types.is_dictionary(column.type)
        return column.cast(pa.dictionary(pa.int32(), pa.string()) if is_encoded else pa.string())
    if pa.types.is_floating(dtype):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, dtype), column)  # how pandas writes a missing integer
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_null(dtype):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            raise DataError(
                f"{source}: ids of type {dtype} are not all 64-bit integers", remedy="write them as text"
            ) from None
    raise DataError(f"{source}: ids cannot be of type {dtype}", remedy="give integers or text")


def _nulls(column: pa.Array) -> Bools:
    if column.null_count == 0:
        return np.zeros(len(column), np.bool_)
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _encode(column: pa.Array, is_text_file: bool) -> IdColumn:
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    codes: Int32s = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    dictionary = encoded.dictionary
    is_used = np.zeros(len(dictionary), np.bool_)
    is_used[codes] = True
    if not is_used.all():
        new_codes = np.cumsum(is_used, dtype=np.int32) - 1
        codes, dictionary = new_codes[codes], dictionary.filter(pa.array(is_used))
    return IdColumn(codes, dictionary, _kind_of(dictionary, is_text_file))


def _kind_of(ids: pa.Array, is_text_file: bool) -> IdKind:
    is_integer = pa.types.is_integer(ids.type) or (is_text_file and are_integers(ids))
    return "integer" if is_integer else "text"


def merge_kinds(kinds: Sequence[IdKind]) -> IdKind:
    """Returns the kind of a log's ids, given those of its blocks: one text id makes all of them text."""
    return "integer" if all(kind == "integer" for kind in kinds) else "text"


def cast_ids(ids: pa.Array, kind: IdKind) -> pa.Array:
    """Returns ids as int64 or string."""
    return ids.cast(pa.int64() if kind == "integer" else pa.string())


def _meets(column: pa.Array, rule: DropRule) -> Bools:
    """Returns whether each value meets every condition of a rule."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type):
        distinct = np.append(_meets_values(column.dictionary, rule), rule.is_null)
        codes = column.indices.fill_null(len(distinct) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(distinct[codes], np.bool_)
    return _meets_values(column, rule)


def _meets_values(column: pa.Array, rule: DropRule) -> Bools:
    if rule.is_null:
        return _nulls(column)
    holds = ~_nulls(column)
    for pattern, wanted in ((rule.matches, True), (rule.not_matches, False)):
        if pattern is not None:
            found = pc.match_substring_regex(column.cast(pa.string()), pattern).fill_null(not wanted)
            holds &= np.asarray(found.to_numpy(zero_copy_only=False), np.bool_) == wanted
    if rule.at_most is not None or rule.at_least is not None:
        numbers = _numbers(column, f"column {rule.column!r}")
        with np.errstate(invalid="ignore"):
            holds &= numbers <= (np.inf if rule.at_most is None else rule.at_most)
            holds &= numbers >= (-np.inf if rule.at_least is None else rule.at_least)
    return holds


def _numbers(column: pa.Array, source: str) -> Float64s:
    """Returns each row's numeric value, NaN where there is none."""
    if pa.types.is_dictionary(column.type):
        distinct = np.append(_numbers(column.dictionary, source), np.nan)
        codes = column.indices.fill_null(len(distinct) - 1).to_numpy(zero_copy_only=False)
        return np.asarray(distinct[codes], np.float64)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        try:
            column = column.cast(pa.float64())
        except pa.ArrowInvalid:
            is_number = pc.match_substring_regex(column, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
            texts = pc.utf8_trim_whitespace(column)
            column = pc.if_else(is_number, texts, pa.scalar(None, column.type)).cast(pa.float64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        if pa.types.is_null(column.type) or pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        else:
            raise DataError(f"{source}: type {column.type} is not numeric", remedy="give numbers")
    return np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False))
