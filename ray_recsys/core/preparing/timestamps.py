"""Times of a log as microseconds since 1970, however they are written; finer times are truncated.

A value that is not a time is reported as invalid.
"""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.errors import DataError

MICROSECONDS = 1_000_000
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_EARLIEST_S, _LATEST_S = -62_135_596_800, 253_402_300_799  # years 1 to 9999
_AUTO_MS_FROM = 100_000_000_000  # seconds until the year 5138


def parse_times(column: pa.Array, unit: str, source: str) -> tuple[Int64s, Bools]:
    """Returns (microseconds since 1970, int64[n]; whether each value is a time, bool[n]).

    Args:
        column: Numbers, texts (integers or ISO 8601), timestamps or dates.
        unit: Unit of numbers: s, ms, us, ns, or auto (s below 1e11, else ms).
        source: Names the column in errors.

    Raises:
        DataError: The column's type cannot hold times.
    """
    if pa.types.is_dictionary(column.type):
        values, is_time = parse_times(column.dictionary, unit, source)
        return _take(values, is_time, column.indices)
    dtype = column.type
    if pa.types.is_integer(dtype):
        return _from_integers(column, unit)
    if pa.types.is_floating(dtype):
        return _from_floats(column, unit)
    if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
        microseconds = column.cast(pa.timestamp("us", getattr(dtype, "tz", None)), safe=False).cast(pa.int64())
        return _in_range(microseconds.fill_null(0).to_numpy(zero_copy_only=False), _valid(column))
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return _from_texts(column, unit)
    if pa.types.is_null(dtype):
        return np.zeros(len(column), np.int64), np.zeros(len(column), np.bool_)
    raise DataError(
        f"{source}: type {dtype} cannot hold times",
        remedy="give integers (s, ms, us, ns) or datetimes, or set input.timestamp_column = 'none' and "
        "split.method = 'random_per_user'",
    )


def _from_integers(column: pa.Array, unit: str) -> tuple[Int64s, Bools]:
    is_time = _valid(column)
    if pa.types.is_uint64(column.type):
        is_time &= pc.less_equal(column, pa.scalar(2**63 - 1, pa.uint64())).fill_null(False).to_numpy(False)
        column = column.cast(pa.int64(), safe=False)
    values: Int64s = column.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    if unit == "auto":
        is_s = np.abs(values) < _AUTO_MS_FROM
        if is_s.all():
            return _scaled(values, "s", is_time)
        seconds, seconds_valid = _scaled(values, "s", is_time)
        milliseconds, milliseconds_valid = _scaled(values, "ms", is_time)
        return np.where(is_s, seconds, milliseconds), np.where(is_s, seconds_valid, milliseconds_valid)
    return _scaled(values, unit, is_time)


def _scaled(values: Int64s, unit: str, is_time: Bools) -> tuple[Int64s, Bools]:
    per_second = _PER_SECOND[unit]
    in_range = (values >= max(_EARLIEST_S * per_second, -(2**63))) & (values <= min(_LATEST_S * per_second, 2**63 - 1))
    is_time = is_time & in_range
    values = np.where(is_time, values, 0)
    if per_second > MICROSECONDS:
        return values // (per_second // MICROSECONDS), is_time
    return values * (MICROSECONDS // per_second), is_time


def _from_floats(column: pa.Array, unit: str) -> tuple[Int64s, Bools]:
    values = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    if unit == "auto":
        scale = np.where(np.abs(values) < _AUTO_MS_FROM, MICROSECONDS, MICROSECONDS // 1000)
    else:
        scale = np.full(len(values), MICROSECONDS / _PER_SECOND[unit])
    with np.errstate(invalid="ignore", over="ignore"):
        microseconds = np.floor(values * scale)
        is_time = np.abs(microseconds) < 2.0**62  # false for NaN
    return _in_range(np.where(is_time, microseconds, 0).astype(np.int64), is_time)


def _from_texts(column: pa.Array, unit: str) -> tuple[Int64s, Bools]:
    try:
        return _from_integers(column.cast(pa.int64()), unit)
    except pa.ArrowInvalid:
        pass
    try:
        return parse_times(column.cast(pa.timestamp("us")), unit, "")
    except pa.ArrowInvalid:
        pass
    distinct = column.dictionary_encode()
    parsed = [_microseconds(text.as_py(), unit) for text in distinct.dictionary]
    values = np.array([value or 0 for value in parsed], np.int64)
    is_time = np.array([value is not None for value in parsed], np.bool_)
    return _take(values, is_time, distinct.indices)


def _microseconds(text: str, unit: str) -> int | None:
    try:
        values, is_time = _from_integers(pa.array([int(text)], pa.int64()), unit)
        return int(values[0]) if is_time[0] else None
    except (ValueError, OverflowError, pa.ArrowInvalid):
        pass
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * MICROSECONDS + since.microseconds


def _take(values: Int64s, is_time: Bools, indices: pa.Array) -> tuple[Int64s, Bools]:
    codes = indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    return np.append(values, 0)[codes], np.append(is_time, np.False_)[codes]


def _in_range(values: Int64s, is_time: Bools) -> tuple[Int64s, Bools]:
    return _scaled(values, "us", is_time)


def _valid(column: pa.Array) -> Bools:
    if column.null_count == 0:
        return np.ones(len(column), np.bool_)
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)
