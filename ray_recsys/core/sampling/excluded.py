"""Items that may not be drawn as negatives of a user, stored for millions of membership tests per second.

Each user's items are sorted. A Bloom filter accompanies them, with one hash function and 16 bits per item, in which a
user's bits are contiguous (one cache line for most users). It has no false negatives and answers most questions alone;
its positives are verified by bisection. Letters: B pairs, N items per row, U users.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import Bools, Int32s, Int64s

_FILTER_BITS = 16  # per item: at most 1 in 16 of a user's bits is set, and of absent items bisected
_FILTER_CHUNK = 1 << 20  # items whose bits are set at once, one byte per bit
_FILTER_END = np.zeros(1, np.uint8)  # read for a last user without items
_HASH_FACTOR = np.uint32(0x9E3779B1)


@dataclass(frozen=True, slots=True)
class ExcludedItems:
    """Distinct items of U users, ascending within each: those of row u are `items[offsets[u]:offsets[u + 1]]`."""

    num_items: int
    offsets: Int64s
    items: Int32s
    filter_bits: npt.NDArray[np.uint8]

    @classmethod
    def from_pairs(cls, num_items: int, num_rows: int, rows: Int64s, items: Int32s) -> Self:
        """Returns the distinct items of each row from (row, item) pairs in any order."""
        keys = (rows << 32) | items
        keys.sort()
        if len(keys):
            keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        offsets = np.searchsorted(keys, np.arange(num_rows + 1, dtype=np.int64) << 32)
        sorted_items = (keys & 0xFFFFFFFF).astype(np.int32)
        return cls(num_items, offsets, sorted_items, _make_filter(offsets, sorted_items))

    @classmethod
    def concatenate(cls, parts: list[Self]) -> Self:
        """Returns the rows of all parts, in order."""
        starts = np.cumsum([0, *(len(part.items) for part in parts)])
        offsets = [part.offsets[:-1] + start for part, start in zip(parts, starts, strict=False)]
        return cls(
            parts[0].num_items,
            np.concatenate([*offsets, starts[-1:]]),
            np.concatenate([part.items for part in parts]),
            np.concatenate([*(part.filter_bits[:-1] for part in parts), _FILTER_END]),
        )

    def num_allowed(self, rows: npt.NDArray[Any]) -> Int64s:
        """Returns the number of items that may be drawn for each row, int64[B]."""
        allowed: Int64s = self.num_items - (self.offsets[rows + 1] - self.offsets[rows])
        return allowed

    def may_contain(self, rows: npt.NDArray[Any], items: npt.NDArray[Any]) -> Bools:
        """Returns False only where an item is certainly not excluded; rows and items are broadcast together."""
        starts = self.offsets[rows]
        bits = _bit(items, starts, self.offsets[rows + 1] - starts)
        octets: npt.NDArray[np.uint8] = self.filter_bits[bits >> 3]
        octets >>= (bits & 7).astype(np.uint8)
        octets &= 1
        return octets.view(np.bool_)

    def contains(self, rows: npt.NDArray[Any], items: npt.NDArray[Any]) -> Bools:
        """Returns whether each item is excluded for its row; both [B]."""
        indices = self._search(rows, items, shift=False)
        found: Bools = indices < self.offsets[rows + 1]
        found[found] = self.items[indices[found]] == items[found]
        return found

    def nth_allowed(self, rows: npt.NDArray[Any], ranks: npt.NDArray[Any]) -> Int64s:
        """Returns the item with the given rank (from 0, below `num_allowed`) among those allowed for its row, [B]."""
        num_before = self._search(rows, ranks, shift=True) - self.offsets[rows]
        nth: Int64s = ranks + num_before
        return nth

    def _search(self, rows: npt.NDArray[Any], values: npt.NDArray[Any], *, shift: bool) -> Int64s:
        """Returns the index in `items` of each row's first item that is >= value; bisects all rows at once.

        With `shift`, the first item that has more than `value` allowed items below it.
        """
        starts = self.offsets[rows]
        low: Int64s = starts.copy()
        high = self.offsets[rows + 1]
        last = max(len(self.items) - 1, 0)
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) >> 1
            items = self.items[np.minimum(middle, last)]
            is_before = items - (middle - starts) <= values if shift else items < values
            is_open = low < high
            low = np.where(is_before & is_open, middle + 1, low)
            high = np.where(is_before | ~is_open, high, middle)
        return low


def _make_filter(offsets: Int64s, items: Int32s) -> npt.NDArray[np.uint8]:
    """Returns 2 bytes per item, a user's at twice the user's offset; made in chunks of rows to bound memory."""
    cuts = np.searchsorted(offsets, np.arange(0, len(items) + _FILTER_CHUNK, _FILTER_CHUNK), side="left")
    cuts = np.unique(np.minimum(cuts, len(offsets) - 1))
    chunks = []
    for first, last in pairwise(cuts):
        lengths = np.diff(offsets[first : last + 1])
        starts = np.repeat(offsets[first:last] - offsets[first], lengths)
        bits = np.zeros(_FILTER_BITS * int(lengths.sum()), np.bool_)
        bits[_bit(items[offsets[first] : offsets[last]], starts, np.repeat(lengths, lengths))] = True
        chunks.append(np.packbits(bits, bitorder="little"))
    return np.concatenate([*chunks, _FILTER_END])


def _bit(items: npt.NDArray[Any], starts: Int64s, lengths: Int64s) -> Int64s:
    """Returns the index of each item's filter bit, for users with the given offsets and numbers of items."""
    hashes = (items.astype(np.uint32) * _HASH_FACTOR).astype(np.int64)
    hashes *= lengths * _FILTER_BITS
    hashes >>= 32
    hashes += starts * _FILTER_BITS
    return hashes
