"""Array type aliases, and positions in rows of unequal length."""

from typing import Any

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
UInt64s = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.integer[Any]]


def ranks_in_rows(lengths: Int64s) -> Int64s:
    """Returns the position of each entry in its row, from 0: 0, 1, 0, 1, 2 for rows of 2 and 3 entries."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def entries_after(lengths: Int64s) -> Int64s:
    """Returns the number of entries after each entry of its row: 1, 0, 2, 1, 0 for rows of 2 and 3 entries."""
    return np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(int(lengths.sum()))


def positions_of_rows(offsets: Int64s, rows: Int64s) -> Int64s:
    """Returns the positions of all entries of some rows, row after row; row r has offsets[r]:offsets[r + 1]."""
    lengths = np.diff(offsets)[rows]
    return np.repeat(offsets[:-1][rows], lengths) + ranks_in_rows(lengths)
