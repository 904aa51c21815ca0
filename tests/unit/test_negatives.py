import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.core.counter_random import Permutation, derive_key
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import NegativeSampler, PopularityDraw

COUNTS = np.array([40, 20, 10, 5, 5, 2, 1, 0])
NUM_ITEMS = len(COUNTS)


def excluded_of(seen: list[set[int]], num_items: int = NUM_ITEMS) -> ExcludedItems:
    rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
    items = np.array([i for s in seen for i in s], np.int32)
    return ExcludedItems.from_pairs(num_items, len(seen), rows, items)


@given(st.lists(st.sets(st.integers(0, NUM_ITEMS - 1), max_size=NUM_ITEMS - 1), min_size=1, max_size=8), st.booleans())
@settings(max_examples=60, deadline=None)
def test_seen_items_are_never_drawn_and_order_does_not_matter(seen: list[set[int]], by_popularity: bool) -> None:
    excluded = excluded_of(seen)
    sampler = NegativeSampler(NUM_ITEMS, 5, seed=1, popularity=PopularityDraw(COUNTS, 0.75) if by_popularity else None)
    rows = np.repeat(np.arange(len(seen)), 40)
    position = np.tile(np.arange(40), len(seen))
    drawn = sampler.draw(3, rows + 100, position, excluded, rows)
    for row, items in enumerate(seen):
        assert not set(drawn[rows == row].ravel().tolist()) & items
    shuffle = np.random.default_rng(0).permutation(len(rows))
    again = [sampler.draw(3, rows[s] + 100, position[s], excluded, rows[s]) for s in np.array_split(shuffle, 3)]
    np.testing.assert_array_equal(np.concatenate(again), drawn[shuffle])
    more = NegativeSampler(NUM_ITEMS, 7, seed=1, popularity=sampler.popularity).draw(
        3, rows + 100, position, excluded, rows
    )
    np.testing.assert_array_equal(more[:, :5], drawn)  # the j-th negative does not depend on how many are drawn


@pytest.mark.parametrize("by_popularity", [False, True])
@pytest.mark.parametrize("seen", [set(), {0, 5}, {0, 1, 2, 3}, {0, 1, 2, 3, 4, 5}])
def test_draws_follow_the_distribution_over_allowed_items(seen: set[int], by_popularity: bool) -> None:
    popularity = PopularityDraw(COUNTS, 0.75) if by_popularity else None
    num_positives = 40_000
    rows = np.zeros(num_positives, np.int64)
    sampler = NegativeSampler(NUM_ITEMS, 3, 5, popularity)
    drawn = sampler.draw(0, rows, np.arange(num_positives), excluded_of([seen]), rows)
    weights = np.maximum(COUNTS, 1) ** 0.75 if by_popularity else np.ones(NUM_ITEMS)
    weights[list(seen)] = 0
    expected = weights / weights.sum() * drawn.size
    allowed = weights > 0
    found = np.bincount(drawn.ravel(), minlength=NUM_ITEMS)
    chi_square = ((found - expected)[allowed] ** 2 / expected[allowed]).sum()
    degrees = allowed.sum() - 1
    assert found[~allowed].sum() == 0
    assert chi_square < degrees + 4 * np.sqrt(2 * degrees)


def test_each_epoch_and_seed_draws_anew() -> None:
    rows = np.zeros(200, np.int64)
    args = (rows, np.arange(200), excluded_of([set()], 1000), rows)
    draws = [NegativeSampler(1000, 4, seed).draw(epoch, *args) for seed in (1, 2) for epoch in (0, 1)]
    shares = [np.mean(a == b) for place, a in enumerate(draws) for b in draws[:place]]
    assert max(shares) < 0.01


@given(st.lists(st.sets(st.integers(0, 30)), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_excluded_items_against_sets(seen: list[set[int]]) -> None:
    whole = excluded_of(seen, 31)
    joined = ExcludedItems.concatenate([excluded_of(seen[:1], 31), excluded_of(seen[1:], 31)])
    items = np.arange(31)
    for row, own in enumerate(seen):
        rows = np.full(31, row)
        allowed = [i for i in range(31) if i not in own]
        for excluded in (whole, joined):
            assert set(np.flatnonzero(excluded.contains(rows, items)).tolist()) == own
            assert own <= set(np.flatnonzero(excluded.may_contain(rows, items)).tolist())
            ranks = np.arange(len(allowed))
            assert excluded.nth_allowed(rows[: len(allowed)], ranks).tolist() == allowed


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4097, 65_537])
def test_permutation_is_one(size: int) -> None:
    order = Permutation(size, derive_key(size))
    shuffled = order(np.arange(size))
    assert np.array_equal(np.sort(shuffled), np.arange(size))
    assert np.array_equal(order(np.arange(size // 2, size)), shuffled[size // 2 :])
    assert size < 100 or abs(np.corrcoef(shuffled, np.arange(size))[0, 1]) < 4 / np.sqrt(size)
