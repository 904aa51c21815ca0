"""Positions in rows of unequal length against slices, row by row."""

import numpy as np
import pytest

from ray_recsys.core.arrays import entries_after, positions_of_rows, ranks_in_rows


@pytest.mark.parametrize("lengths", [[], [0], [3], [0, 0, 2, 0, 3], [1, 4, 1, 0]])
def test_positions_in_rows_equal_those_of_slices(lengths: list[int]) -> None:
    given = np.array(lengths, np.int64)
    assert ranks_in_rows(given).tolist() == [rank for length in lengths for rank in range(length)]
    assert entries_after(given).tolist() == [length - 1 - rank for length in lengths for rank in range(length)]


@pytest.mark.parametrize("rows", [[], [2], [4, 0, 4, 1], [0, 1, 2, 3, 4]])
def test_positions_of_rows_equal_those_of_slices(rows: list[int]) -> None:
    offsets = np.array([0, 2, 2, 5, 6, 10])
    expected = [position for row in rows for position in range(offsets[row], offsets[row + 1])]
    assert positions_of_rows(offsets, np.array(rows, np.int64)).tolist() == expected
