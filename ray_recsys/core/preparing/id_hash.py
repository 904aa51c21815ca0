"""64-bit hashes of ids that are the same in every process, on every machine and for an integer and its text.

Used for partitions of users and the random split; they are no protection against chosen collisions.
"""

import numpy as np
import pyarrow as pa

from ray_recsys.core.arrays import UInt64s

_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that its powers are invertible modulo 2^64
_SLICE = 65_536  # ids hashed at once: the work arrays stay in cache
NUM_BUCKETS = 4096
"""Fixed number of hash buckets of users; a partition is a run of buckets."""


def hash_ids(ids: pa.Array) -> UInt64s:
    """Returns the hash of each id's text, uint64[n].

    A polynomial over the text's bytes modulo 2^64, mixed by splitmix64's finalizer.

    Args:
        ids: Strings or integers without nulls; distinct ones, because the work is by byte.
    """
    texts = ids.cast(pa.large_string())
    slices = [_hash_slice(texts.slice(start, _SLICE)) for start in range(0, len(texts), _SLICE)]
    return np.concatenate(slices) if slices else np.zeros(0, np.uint64)


def _hash_slice(texts: pa.LargeStringArray) -> UInt64s:
    _, offset_buffer, byte_buffer = texts.buffers()
    if byte_buffer is None:
        return mix(np.zeros(len(texts), np.uint64))
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text_bytes = np.frombuffer(byte_buffer, np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    place = np.arange(len(text_bytes)) - np.repeat(starts, lengths)
    terms = (text_bytes.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[place]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    ends = starts + lengths
    return mix(sums[ends] - sums[starts] + lengths.astype(np.uint64))


def bucket_of(hashes: UInt64s) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    """Returns each hash's bucket in [0, NUM_BUCKETS)."""
    return (hashes >> np.uint64(52)).astype(np.uint16)


def partition_bounds(num_partitions: int) -> list[int]:
    """Returns the first bucket of each partition and, last, NUM_BUCKETS."""
    return [p * NUM_BUCKETS // num_partitions for p in range(num_partitions + 1)]


def mix(values: UInt64s) -> UInt64s:
    """Returns well-mixed 64-bit values (a bijection).

    Source: the finalizer of splitmix64 (Steele, Lea & Flood 2014, Fast Splittable Pseudorandom Number Generators).
    """
    z = values + np.uint64(_MULTIPLIER)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _powers(count: int) -> UInt64s:
    powers = np.full(max(count, 1), _MULTIPLIER, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
