"""Times of every type and unit against Python's datetimes, and what is not a time is said to be none."""

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.preparing.timestamps import parse_times
from ray_recsys.errors import DataError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MOMENTS = st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - the strategy adds it
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def microseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


def parse(column: pa.Array, unit: str = "auto") -> list[int | None]:
    values, is_time = parse_times(column, unit, "test")
    return [value if good else None for value, good in zip(values.tolist(), is_time.tolist(), strict=True)]


@given(st.lists(MOMENTS, max_size=10))
def test_timestamps_and_texts_are_the_same_moments(moments: list[datetime]) -> None:
    expected = [microseconds(moment) for moment in moments]
    assert parse(pa.array(moments, pa.timestamp("us", "UTC"))) == expected
    assert parse(pa.array([moment.isoformat() for moment in moments], pa.string())) == expected
    naive = [moment.replace(tzinfo=None).isoformat(" ") for moment in moments]
    assert parse(pa.array(naive, pa.large_string())) == expected
    assert parse(pa.array(naive, pa.string()).dictionary_encode()) == expected


@given(MOMENTS, st.integers(-23, 23))
def test_an_offset_is_taken_off(moment: datetime, hours: int) -> None:
    zone = timezone(timedelta(hours=hours))
    text = moment.replace(tzinfo=zone).isoformat()
    inside = -62_135_596_800 <= (microseconds(moment) - hours * 3_600 * 10**6) // 10**6 <= 253_402_300_799
    found = parse(pa.array([text, "never"]))
    assert found == [microseconds(moment) - hours * 3_600 * 10**6 if inside else None, None]


@pytest.mark.parametrize("unit", PER_SECOND)
@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-(10**10), 10**12), max_size=10))
def test_integers_in_a_unit(unit: str, values: list[int | None]) -> None:
    scale = PER_SECOND[unit]

    def expected(value: int | None) -> int | None:
        inside = value is not None and -62_135_596_800 * scale <= value <= 253_402_300_799 * scale
        return value * 10**6 // scale if value is not None and inside else None

    numbers = [expected(value) for value in values]
    assert parse(pa.array(values, pa.int64()), unit) == numbers
    assert parse(pa.array([None if v is None else str(v) for v in values], pa.string()), unit) == numbers


@given(st.lists(st.integers(-(6 * 10**10), 7 * 10**13), max_size=10))
def test_an_integer_of_an_unknown_unit_is_seconds_if_it_is_small(values: list[int]) -> None:
    expected = [value * 10**6 if abs(value) < 10**11 else value * 10**3 for value in values]
    assert parse(pa.array(values, pa.int64())) == expected
    assert parse(pa.array(values, pa.float64())) == expected


@pytest.mark.parametrize(
    ("values", "dtype", "unit", "expected"),
    [
        ([1.5, float("nan"), float("inf"), None, 1e300], pa.float64(), "s", [1_500_000, None, None, None, None]),
        ([1, 2**63], pa.uint64(), "us", [1, None]),
        ([date(1970, 1, 2), None], pa.date32(), "auto", [86_400_000_000, None]),
        ([1_234_567_891], pa.timestamp("ns"), "auto", [1_234_567]),
        ([-1], pa.timestamp("s"), "auto", [-1_000_000]),
        ([1_999, -1], pa.int64(), "ns", [1, -1]),
        ([None, None], pa.null(), "auto", [None, None]),
        (
            ["5", "2001-01-01", " 2001-01-01 ", "soon", "", None],
            pa.string(),
            "s",
            [5_000_000, *[978_307_200_000_000] * 2, *[None] * 3],
        ),
    ],
)
def test_borders(values: list[Any], dtype: pa.DataType, unit: str, expected: list[int | None]) -> None:
    assert parse(pa.array(values, dtype), unit) == expected


@pytest.mark.parametrize("column", [pa.array([True]), pa.array([[1]]), pa.array([timedelta(1)])])
def test_a_type_that_cannot_hold_times(column: pa.Array) -> None:
    with pytest.raises(DataError, match=r"log, column 'when': type .* cannot hold times; give integers"):
        parse_times(column, "auto", "log, column 'when'")


def test_results_are_arrays_of_their_types() -> None:
    values, is_time = parse_times(pa.array([], pa.string()), "auto", "test")
    assert (str(values.dtype), str(is_time.dtype), len(values)) == ("int64", "bool", 0)
