"""Guesses which columns of a log hold users, items, times and ratings, from names, then types and values."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.inspecting.log_sample import Column, LogSample
from ray_recsys.core.preparing.timestamps import parse_times
from ray_recsys.errors import DataError

_NAMES = {
    "user": (
        *("user", "customer", "visitor", "member", "client", "buyer", "reader", "viewer", "listener", "subscriber"),
        *("account", "profile", "shopper", "session"),
    ),
    "item": (
        *("item", "product", "movie", "article", "sku", "stockcode", "asin", "track", "song", "book", "isbn", "artist"),
        *("video", "listing", "business", "content"),
    ),
    "time": ("timestamp", "datetime", "time", "date", "ts", "created"),
    "rating": ("rating", "ratings", "stars", "overall", "score", "grade"),
}
_PLAUSIBLE_US = (631_152_000_000_000, 4_102_444_800_000_000)  # 1990 to 2100: smaller or larger numbers are no times
_MAX_RATINGS = 101
_UNITS = ((1e11, "s"), (1e14, "ms"), (1e17, "us"), (float("inf"), "ns"))


@dataclass(frozen=True, slots=True)
class Guess:
    """A column for a purpose."""

    column: str | None
    reason: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LogGuess:
    """The roles of a log's columns."""

    user: Guess
    item: Guess
    time: Guess
    time_unit: str
    """`auto`, or the unit of integer times that `auto` would not recognise."""
    rating: Guess


def guess_columns(sample: LogSample, *, user: str | None = None, item: str | None = None) -> LogGuess:
    """Returns the roles of the columns.

    Args:
        sample: The first rows.
        user: Column of users, if that is known.
        item: Column of items, if that is known.

    Raises:
        DataError: No column can hold users, or items.
    """
    given = {name for name in (user, item) if name is not None}
    columns = [column for column in sample.columns if column.name not in given]
    time = _choose("time", columns, _is_time)
    ids = [column for column in columns if column.name != time.column]
    rating = _choose("rating", ids, _is_rating, by_name_alone=True)
    ids = [column for column in ids if column.name != rating.column]
    chosen_user = Guess(user, "given") if user else _choose("user", ids, _is_id)
    ids = [column for column in ids if column.name != chosen_user.column]
    chosen_item = Guess(item, "given") if item else _choose("item", ids, _is_id)
    for purpose, guess in (("users", chosen_user), ("items", chosen_item)):
        if guess.column is None:
            raise DataError(
                f"{sample.file.uri} has no column that looks like {purpose} "
                f"(columns: {', '.join(column.name for column in sample.columns)})",
                remedy=f"name it with --set input.{purpose[:-1]}_column=NAME",
            )
    return LogGuess(chosen_user, chosen_item, time, _unit(sample, time.column), rating)


def _choose(
    purpose: str, columns: Sequence[Column], fits: Callable[[Column], bool], *, by_name_alone: bool = False
) -> Guess:
    fitting = [column for column in columns if fits(column)]
    named = sorted(
        (column for column in fitting if _rank(purpose, column.name) < np.inf), key=lambda c: _rank(purpose, c.name)
    )
    if named:
        others = [column.name for column in fitting if column is not named[0]]
        return Guess(named[0].name, "its name", tuple(others))
    if fitting and not by_name_alone:
        others = [column.name for column in fitting[1:]]
        return Guess(fitting[0].name, "its values alone: no name says so", tuple(others))
    return Guess(None, "no column looks like it", tuple(column.name for column in fitting))


def _rank(purpose: str, name: str) -> float:
    """Returns how well a name fits: 0 best; infinite if it does not."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    joined = "".join(words).removesuffix("id")
    ranks = [
        number + (0 if joined == word else 0.5)
        for number, word in enumerate(_NAMES[purpose])
        if word in words or joined in (word, f"{word}s") or (purpose != "rating" and joined.endswith(word))
    ]
    return min(ranks, default=np.inf)


def _is_id(column: Column) -> bool:
    dtype = column.values.type
    dtype = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return bool(pa.types.is_integer(dtype) or pa.types.is_string(dtype) or pa.types.is_large_string(dtype))


def _is_rating(column: Column) -> bool:
    dtype = column.values.type
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype)) and column.num_distinct <= _MAX_RATINGS


def _is_time(column: Column) -> bool:
    """Whether nearly all values are times between 1990 and 2100."""
    dtype = column.values.type
    unit = _integer_unit(column) if pa.types.is_integer(dtype) else "auto"
    try:
        times_us, is_time = parse_times(column.values, unit, column.name)
    except (DataError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    plausible = is_time & (times_us >= _PLAUSIBLE_US[0]) & (times_us < _PLAUSIBLE_US[1])
    return bool(plausible.mean() >= 0.9)


def _unit(sample: LogSample, name: str | None) -> str:
    found = [column for column in sample.columns if column.name == name]
    if not found or not pa.types.is_integer(found[0].values.type):
        return "auto"
    unit = _integer_unit(found[0])
    return "auto" if unit in ("s", "ms") else unit


def _integer_unit(column: Column) -> str:
    largest = pc.max(pc.abs(column.values.drop_null().cast(pa.float64(), safe=False))).as_py() or 0.0
    return next(unit for limit, unit in _UNITS if largest < limit)
