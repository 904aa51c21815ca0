"""Random numbers and shuffles as pure functions of a key and a counter; there is no state to save, ship or advance.

The mixer is splitmix64's finalizer. Everything works on whole arrays.

Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014 (mixer, golden gamma);
    Black, Rogaway: Ciphers with arbitrary finite domains, CT-RSA 2002, sections 3 (cycle walking) and 5 (Feistel on
    a x b; an even number of rounds ends with each half on its own side), here with additions instead of exclusive or,
    so that the halves need not be powers of two.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ray_recsys.core.arrays import UInt64s

GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6
_LOW_32 = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def mix(values: UInt64s) -> UInt64s:
    """Scrambles the values in place and returns them: a bijection of 64 bits that makes near inputs look unrelated."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        values ^= values >> np.uint64(shift)
        values *= factor
    values ^= values >> np.uint64(31)
    return values


def splitmix64(values: UInt64s) -> UInt64s:
    """Returns well-mixed 64-bit values, a bijection of the given ones, which are not modified."""
    return mix(values + GOLDEN_GAMMA)


def derive_key(*parts: int) -> int:
    """Returns the 64-bit key of a sequence of whole numbers, e.g. (seed, purpose, epoch)."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = splitmix64(key ^ np.uint64(part % 2**64))
    return int(key[0])


def derive_keys(keys: UInt64s | int, parts: npt.NDArray[Any]) -> UInt64s:
    """Returns the key of (key, part), element by element: independent streams for users or positions."""
    # Not the gamma as factor: `random_bits` steps by the gamma, and the streams of neighbours must not overlap.
    return mix((parts.astype(np.uint64) * MIX_2) ^ (np.asarray(keys, np.uint64) + GOLDEN_GAMMA))


def random_bits(keys: UInt64s, counters: npt.NDArray[Any]) -> UInt64s:
    """Returns 64 random bits for each (key, counter), broadcast against each other."""
    return mix(keys + (counters.astype(np.uint64) + np.uint64(1)) * GOLDEN_GAMMA)


def scale_to(bits: UInt64s, bound: int) -> UInt64s:
    """Scales random bits in place to whole numbers in [0, bound), bound < 2^31, and returns them.

    The probabilities of two numbers differ relatively by at most bound^2 / 2^63 (10 M items: 0.00001).
    """
    assert 0 < bound < 2**31
    width = np.uint64(bound.bit_length())
    bits >>= width
    bits *= np.uint64(bound)
    bits >>= np.uint64(64) - width
    return bits


def scale_to_each(bits: UInt64s, bounds: UInt64s) -> UInt64s:
    """Returns the high 64 bits of bits x bound: whole numbers in [0, bound) for bounds up to 2^63."""
    high, low = bits >> _32, bits & _LOW_32
    bound_high, bound_low = bounds >> _32, bounds & _LOW_32
    middle = high * bound_low + (low * bound_low >> _32)
    carry = (middle & _LOW_32) + low * bound_high
    products: UInt64s = high * bound_high + (middle >> _32) + (carry >> _32)
    return products


@dataclass(frozen=True)
class Permutation:
    """A shuffle of [0, size), size <= 2^32, evaluated at any positions; different keys give unrelated shuffles."""

    size: int
    key: int

    def __call__(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the values at the given positions of the shuffled sequence, int64, same shape."""
        values = self._encipher(positions)
        # left_size x right_size exceeds `size` by less than one row, so a walk rarely needs a second step.
        while len(outside := np.flatnonzero(values >= self.size)):
            values[outside] = self._encipher(values[outside])
        return values

    def _encipher(self, values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        left_size, right_size = self.halves
        quotient = values // right_size
        left, right = quotient.astype(np.uint32), (values - quotient * right_size).astype(np.uint32)
        for round_, key in enumerate(self.round_keys):
            size = (left_size, right_size)[round_ % 2]
            left += _scramble(right, key, size)
            np.minimum(left, left - np.uint32(size), out=left)  # modulo size: the difference wraps below 0
            left, right = right, left
        return left.astype(np.int64) * right_size + right

    @cached_property
    def halves(self) -> tuple[int, int]:
        """Sizes of the left and the right half of a value; their product is at least `size`."""
        assert 0 < self.size <= 2**32
        left_size = math.isqrt(self.size - 1) + 1
        return left_size, -(-self.size // left_size)

    @cached_property
    def round_keys(self) -> tuple[np.uint32, ...]:
        """Key of each round."""
        return tuple(np.uint32(derive_key(self.key, round_) >> 32) for round_ in range(_FEISTEL_ROUNDS))


def _scramble(values: npt.NDArray[np.uint32], key: np.uint32, size: int) -> npt.NDArray[np.uint32]:
    """Returns a keyed hash of each value in [0, size), size <= 2^16; murmur3's finalizer without its first shift."""
    hashes = values ^ key
    hashes *= np.uint32(0x85EBCA6B)
    hashes ^= hashes >> np.uint32(13)
    hashes *= np.uint32(0xC2B2AE35)
    hashes >>= np.uint32(16)
    hashes *= np.uint32(size)
    hashes >>= np.uint32(16)
    return hashes
