"""Ids of users and items outside the vocabulary: packed for transfer between tasks, hashed, and merged."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Int32s, Int64s, UInt64s, ranks_in_rows
from ray_recsys.core.counter_random import GOLDEN_GAMMA, splitmix64

NUM_BUCKETS = 4096
"""Fixed number of hash buckets of users; a partition is a range of buckets."""
_HASHED_AT_ONCE = 65_536  # ids whose work arrays stay in the cache


@dataclass(frozen=True, slots=True)
class PackedIds:
    """Ids as plain numpy arrays: Ray's object store maps those, but rewrites each Arrow array, which takes 4 ms."""

    values: Int64s | npt.NDArray[np.uint8]
    """Integers, or the bytes of all texts one after the other."""
    offsets: Int32s | None
    """Where each text begins and, last, where they end; None: the ids are integers."""

    @classmethod
    def of(cls, ids: pa.Array) -> Self:
        """Packs strings or int64 without nulls."""
        if pa.types.is_int64(ids.type):
            return cls(ids.to_numpy(), None)
        _, offset_buffer, byte_buffer = ids.cast(pa.string()).buffers()
        offsets = np.zeros(1, np.int32)
        if len(ids):
            offsets = np.frombuffer(offset_buffer, np.int32)[ids.offset : ids.offset + len(ids) + 1]
        data = np.zeros(0, np.uint8) if byte_buffer is None else np.frombuffer(byte_buffer, np.uint8)
        return cls(data[offsets[0] : offsets[-1]], offsets - offsets[0])

    def __len__(self) -> int:
        return len(self.values) if self.offsets is None else len(self.offsets) - 1

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return self.values.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def cut(self, start: int, stop: int) -> "PackedIds":
        """Returns the ids of a range."""
        if self.offsets is None:
            return PackedIds(self.values[start:stop], None)
        offsets = self.offsets[start : stop + 1]
        return PackedIds(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def array(self) -> pa.Array:
        """Returns the ids as int64 or string, without a copy."""
        if self.offsets is None:
            return pa.array(self.values)
        return pa.StringArray.from_buffers(len(self), pa.py_buffer(self.offsets), pa.py_buffer(self.values))


def ranked(ids: pa.Array) -> tuple[Int64s, pa.Array]:
    """Returns (the rank of each id among the distinct ids, the distinct ids in order)."""
    encoded = ids.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], encoded.dictionary.take(order)


def partition_bounds(num_partitions: int) -> list[int]:
    """Returns the first bucket of each partition and, last, NUM_BUCKETS."""
    return [p * NUM_BUCKETS // num_partitions for p in range(num_partitions + 1)]


def bucket_of(hashes: UInt64s) -> npt.NDArray[np.uint16]:
    """Returns each hash's bucket in [0, NUM_BUCKETS)."""
    return (hashes >> np.uint64(52)).astype(np.uint16)


def hash_ids(ids: pa.Array) -> UInt64s:
    """Returns a 64-bit hash of each id's text, uint64[n]: the same in every process, for an integer and for its text.

    A polynomial over the text's bytes modulo 2^64, mixed by splitmix64. No protection against deliberate collisions.

    Args:
        ids: Strings or integers without nulls, preferably distinct: the cost is per byte.
    """
    texts = ids.cast(pa.large_string())
    slices = [_hash_slice(texts.slice(start, _HASHED_AT_ONCE)) for start in range(0, len(texts), _HASHED_AT_ONCE)]
    return np.concatenate(slices) if slices else np.zeros(0, np.uint64)


def _hash_slice(texts: pa.LargeStringArray) -> UInt64s:
    _, offset_buffer, byte_buffer = texts.buffers()
    if byte_buffer is None:
        return splitmix64(np.zeros(len(texts), np.uint64))
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text_bytes = np.frombuffer(byte_buffer, np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    terms = (text_bytes.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[ranks_in_rows(lengths)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return splitmix64(sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64))


def _powers(count: int) -> UInt64s:
    """Returns the powers 0, 1, 2, … of the gamma, which is odd and so invertible modulo 2^64."""
    powers = np.full(max(count, 1), GOLDEN_GAMMA, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
