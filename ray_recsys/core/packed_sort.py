"""Rows in lexicographic order: columns packed into as few 64-bit words as possible, so that mostly one sort does.

Knows nothing of what the columns mean. n: rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Int64s, UInt64s

_WORD_BITS = 64


def sort_columns(columns: Sequence[npt.NDArray[np.integer]]) -> list[Int64s]:
    """Returns the rows, one int64[n] per column, sorted by the first column, ties by the second, and so on.

    The columns are the whole row: rows that compare equal are equal, so that no order of the input can show.

    Args:
        columns: Integers [n] each, in order of significance; a column's range must fit 64 bits.
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
        # Two's complement: the difference is right modulo 2^64 even where int64 would overflow.
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
