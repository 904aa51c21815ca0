"""The mixer against published values, and whole numbers against Python's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.counter_random import (
    Permutation,
    derive_key,
    derive_keys,
    mix,
    random_bits,
    scale_to,
    scale_to_each,
    splitmix64,
)

WORDS = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20)


def test_splitmix64_is_the_published_generator() -> None:
    # Its first outputs from seed 0 (Vigna, splitmix64.c): the state steps by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    states = np.array([i * gamma % 2**64 for i in range(3)], np.uint64)
    assert splitmix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert states[0] == 0, "the input stays as it is"
    assert random_bits(np.zeros(3, np.uint64), np.arange(3)).tolist() == splitmix64(states).tolist()


def test_mix_works_in_place() -> None:
    values = np.array([1, 2], np.uint64)
    assert mix(values) is values
    assert values.tolist() != [1, 2]


@given(WORDS, st.integers(1, 2**31 - 1))
def test_scaled_to_one_bound(words: list[int], bound: int) -> None:
    width = bound.bit_length()
    expected = [((word >> width) * bound) >> (64 - width) for word in words]
    assert scale_to(np.array(words, np.uint64), bound).tolist() == expected
    assert all(0 <= value < bound for value in expected)


@given(WORDS, st.data())
def test_scaled_to_each_bound(words: list[int], data: st.DataObject) -> None:
    bounds = data.draw(st.lists(st.integers(1, 2**63), min_size=len(words), max_size=len(words)))
    expected = [word * bound >> 64 for word, bound in zip(words, bounds, strict=True)]
    assert scale_to_each(np.array(words, np.uint64), np.array(bounds, np.uint64)).tolist() == expected


@given(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=4))
def test_a_key_depends_on_every_part_and_their_order(parts: list[int]) -> None:
    key = derive_key(*parts)
    assert key == derive_key(*parts)
    assert key != derive_key(*parts, 0)
    if len(set(parts)) > 1:
        assert derive_key(*reversed(parts)) != key or parts == parts[::-1]


def test_streams_of_neighbours_do_not_overlap() -> None:
    keys = derive_keys(7, np.arange(100))
    streams = random_bits(keys[:, None], np.arange(100)[None, :])
    assert len(np.unique(streams)) == streams.size


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1_000, 65_537])
def test_a_permutation_is_one_and_differs_by_key(size: int) -> None:
    positions = np.arange(size)
    shuffles = [Permutation(size, key)(positions) for key in (1, 1, 2)]
    assert (np.sort(shuffles[0]) == positions).all()
    assert (shuffles[0] == shuffles[1]).all()
    assert size < 10 or (shuffles[0] != shuffles[2]).any()
    some = positions[:: max(1, size // 7)]
    assert (Permutation(size, 1)(some) == shuffles[0][some]).all()
