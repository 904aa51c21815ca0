"""`counter_random` on a torch device: the same bits from the same keys and counters.

Torch has no unsigned 64-bit arithmetic on all devices. Sums and products of int64 wrap around to the same bits as those
of uint64; only shifts to the right need care, since those of int64 copy the sign.
"""

import torch
from torch import Tensor

from ray_recsys.core.counter_random import GOLDEN_GAMMA, MIX_1, MIX_2, Permutation

_LOW_32 = 0xFFFFFFFF
_SCRAMBLE = (0x85EBCA6B, 0xC2B2AE35)


def signed(value: int) -> int:
    """Returns the int64 with the same bits as a whole number below 2^64."""
    return value - (value >> 63 << 64)


_GAMMA, _FACTOR_1, _FACTOR_2 = (signed(int(factor)) for factor in (GOLDEN_GAMMA, MIX_1, MIX_2))


def mix(values: Tensor) -> Tensor:
    """Scrambles int64 values in place and returns them."""
    for shift, factor in ((30, _FACTOR_1), (27, _FACTOR_2)):
        values ^= _shift_right(values, shift)
        values *= factor
    values ^= _shift_right(values, 31)
    return values


def derive_keys(keys: Tensor | int, parts: Tensor) -> Tensor:
    """Returns the key of (key, part), element by element; an int is a key below 2^64."""
    if isinstance(keys, int):
        return mix((parts * _FACTOR_2) ^ signed((keys + int(GOLDEN_GAMMA)) % 2**64))
    return mix((parts * _FACTOR_2) ^ (keys + _GAMMA))


def random_bits(keys: Tensor, counters: Tensor) -> Tensor:
    """Returns 64 random bits for each (key, counter), broadcast against each other."""
    return mix(keys + (counters + 1) * _GAMMA)


def scale_to(bits: Tensor, bound: int) -> Tensor:
    """Returns whole numbers in [0, bound), bound < 2^31, from random bits."""
    width = bound.bit_length()
    return _shift_right(_shift_right(bits, width) * bound, 64 - width)


def scale_to_each(bits: Tensor, bounds: Tensor) -> Tensor:
    """Returns the high 64 bits of bits x bound: whole numbers in [0, bound)."""
    high, low = _shift_right(bits, 32), bits & _LOW_32
    bound_high, bound_low = _shift_right(bounds, 32), bounds & _LOW_32
    middle = high * bound_low + _shift_right(low * bound_low, 32)
    carry = (middle & _LOW_32) + low * bound_high
    return high * bound_high + _shift_right(middle, 32) + _shift_right(carry, 32)


def permute(order: Permutation, positions: Tensor) -> Tensor:
    """Returns the values at the given positions of a shuffled sequence, int64[B]."""
    values = _encipher(order, positions)
    while len(outside := torch.nonzero(values >= order.size).squeeze(1)):
        values[outside] = _encipher(order, values[outside])
    return values


def _encipher(order: Permutation, values: Tensor) -> Tensor:
    left_size, right_size = order.halves
    left = values // right_size
    right = values - left * right_size
    for round_, key in enumerate(order.round_keys):
        size = (left_size, right_size)[round_ % 2]
        left = left + _scramble(right, int(key), size)
        left = torch.where(left >= size, left - size, left)
        left, right = right, left
    return left * right_size + right


def _scramble(values: Tensor, key: int, size: int) -> Tensor:
    hashes = values ^ key
    hashes = (hashes * _SCRAMBLE[0]) & _LOW_32
    hashes = hashes ^ (hashes >> 13)
    hashes = ((hashes * _SCRAMBLE[1]) & _LOW_32) >> 16
    return (hashes * size) >> 16


def _shift_right(values: Tensor, bits: int) -> Tensor:
    return (values >> bits) & ((1 << (64 - bits)) - 1)
