"""Histories survive their Arrow form, whatever is empty, missing, chunked or sliced."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.histories import COLUMNS, Histories, Interactions, to_table

PARTS = ("training", "validation", "test")


@st.composite
def interactions(draw: st.DrawFn, num_users: int, columns: frozenset[str]) -> Interactions:
    lengths = draw(st.lists(st.integers(0, 4), min_size=num_users, max_size=num_users))
    size = sum(lengths)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return Interactions(
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rng.integers(0, 2**31, size).astype(np.int32),
        rng.integers(-(2**62), 2**62, size) if "timestamp_s" in columns else None,
        rng.normal(size=size).astype(np.float32) if "rating" in columns else None,
        rng.integers(1, 2**31, size).astype(np.int32) if "repetition" in columns else None,
    )


@st.composite
def histories(draw: st.DrawFn) -> Histories:
    num_users = draw(st.integers(1, 6))
    columns = draw(st.frozensets(st.sampled_from(sorted(COLUMNS))))
    first = draw(st.integers(0, 2**40))
    return Histories(first, *(draw(interactions(num_users, columns)) for _ in PARTS))


def as_table(made: Histories) -> pa.Table:
    return to_table(made, pa.array([f"u{u}" for u in made.user_idx]))


def assert_equal(found: Histories, expected: Histories, start: int, stop: int) -> None:
    np.testing.assert_array_equal(found.user_idx, expected.user_idx[start:stop])
    for part in PARTS:
        ours, theirs = getattr(found, part), getattr(expected, part)
        low, high = theirs.offsets[start], theirs.offsets[stop]
        np.testing.assert_array_equal(ours.offsets, theirs.offsets[start : stop + 1] - low)
        for column, dtype in COLUMNS.items():
            values, whole = getattr(ours, column), getattr(theirs, column)
            assert (values is None) == (whole is None)
            if whole is not None:
                assert values.dtype == dtype.to_pandas_dtype()
                np.testing.assert_array_equal(values, whole[low:high])


@given(histories())
def test_round_trip(made: Histories) -> None:
    assert_equal(Histories.from_table(as_table(made)), made, 0, len(made.user_idx))


@given(histories(), st.data())
def test_slices_and_chunks_read_like_the_whole(made: Histories, data: st.DataObject) -> None:
    num_users = len(made.user_idx)
    start = data.draw(st.integers(0, num_users - 1))
    stop = data.draw(st.integers(start + 1, num_users))
    cut = data.draw(st.integers(start, stop))
    table = as_table(made)
    chunked = pa.concat_tables([table.slice(start, cut - start), table.slice(cut, stop - cut)])
    assert_equal(Histories.from_table(chunked), made, start, stop)


def test_empty_partition() -> None:
    nobody = Interactions(np.zeros(1, np.int64), np.zeros(0, np.int32))
    found = Histories.from_table(to_table(Histories(0, nobody, nobody, nobody), pa.array([], pa.string())))
    assert found.training.num_users == 0
    assert len(found.training.item_idx) == 0


def test_rows_and_lengths_by_hand() -> None:
    made = Interactions(np.array([0, 2, 2, 5]), np.array([7, 8, 1, 2, 3], np.int32))
    assert made.num_users == 3
    assert made.lengths.tolist() == [2, 0, 3]
    assert made.rows().tolist() == [0, 0, 2, 2, 2]


def test_a_partition_too_large_for_its_offsets_is_refused() -> None:
    huge = Interactions(np.array([0, 2**31]), np.zeros(0, np.int32))
    with pytest.raises(AssertionError, match="32-bit"):
        to_table(Histories(0, huge, huge, huge), pa.array(["u"]))


@given(histories())
def test_everything_together_is_each_users_interactions_by_time(made: Histories) -> None:
    merged = made.with_held_out()
    assert not len(merged.validation.item_idx)
    assert not len(merged.test.item_idx)
    for row in range(made.training.num_users):
        expected = []
        for part in (made.training, made.validation, made.test):
            for index in range(part.offsets[row], part.offsets[row + 1]):
                columns = [getattr(part, name) for name in COLUMNS]
                expected.append([None if column is None else column[index].item() for column in columns])
        if made.training.timestamp_s is not None:
            expected.sort(key=lambda values: values[1] or 0)  # stable: ties keep training, validation, test
        found = slice(*merged.training.offsets[row : row + 2])
        columns = [getattr(merged.training, name) for name in COLUMNS]
        assert [
            [None if column is None else column[index].item() for column in columns]
            for index in range(found.start, found.stop)
        ] == expected
