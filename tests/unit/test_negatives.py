import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.core.counter_random import Permutation, derive_key, derive_keys, random_bits
from ray_recsys.core.sampling import excluded as excluded_module
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import NegativeSampler, PopularityDraw, alias_table

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
    shares = [np.mean(a == b) for index, a in enumerate(draws) for b in draws[:index]]
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


def weights_of(counts: list[int], alpha: float) -> list[int]:
    """Integer weights of the items, out of about 2^48."""
    shares = np.maximum(counts, 1).astype(np.float64) ** alpha
    return [max(1, round(share)) for share in shares / shares.sum() * 2.0**48]


def draw_one(counts: list[int], alpha: float | None, seen: set[int], key: int, j: int) -> int:
    """The j-th negative of a positive with the given key, one item at a time; alpha None: uniform."""
    table = PopularityDraw(np.array(counts), alpha or 0.0)
    num_items = len(counts)

    def bits(counter: int) -> int:
        return int(random_bits(np.array([key], np.uint64), np.array([counter]))[0])

    for attempt in range(4):
        drawn = bits(j + (attempt << 32))
        width = num_items.bit_length()
        item = ((drawn >> width) * num_items) >> (64 - width)
        if alpha is not None and (drawn & 0xFFFFFF) / 2**24 >= table._keep[item]:
            item = int(table._alias[item])
        if item not in seen:
            return item
    allowed = [item for item in range(num_items) if item not in seen]
    weights = [1] * num_items if alpha is None else weights_of(counts, alpha)
    target = (bits(j + (4 << 32)) * sum(weights[item] for item in allowed)) >> 64
    for item in allowed:
        target -= weights[item]
        if target < 0:
            return item
    raise AssertionError


@given(
    counts=st.lists(st.integers(0, 50), min_size=2, max_size=7),
    alpha=st.sampled_from([None, 0.0, 0.75, 1.0]),
    data=st.data(),
)
def test_draws_against_one_item_at_a_time(counts: list[int], alpha: float | None, data: st.DataObject) -> None:
    num_items = len(counts)
    seen = data.draw(st.lists(st.sets(st.integers(0, num_items - 1), max_size=num_items - 1), min_size=1, max_size=4))
    popularity = None if alpha is None else PopularityDraw(np.array(counts), alpha)
    rows, position = np.repeat(np.arange(len(seen)), 3), np.tile(np.arange(3), len(seen))
    drawn = NegativeSampler(num_items, 4, 11, popularity).draw(2, rows, position, excluded_of(seen, num_items), rows)
    keys = derive_keys(derive_keys(derive_key(11, 1, 2), rows), position)
    expected = [
        [draw_one(counts, alpha, seen[row], int(key), j) for j in range(4)] for row, key in zip(rows, keys, strict=True)
    ]
    assert drawn.tolist() == expected


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_alias_table_gives_each_slot_its_share(counts: list[int]) -> None:
    expected = np.array(counts) / np.sum(counts) * len(counts)
    keep, alias = alias_table(expected)
    assert ((keep >= 0) & (keep <= 1)).all()
    shares = keep.copy()
    np.add.at(shares, alias, 1 - keep)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=1e-9)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40))), st.integers(1, 7))
def test_repeated_pairs_count_once_and_the_filter_does_not_depend_on_its_chunks(
    pairs: list[tuple[int, int]], chunk: int
) -> None:
    rows, items = (np.array([pair[i] for pair in pairs], np.int64) for i in (0, 1))
    whole = ExcludedItems.from_pairs(41, 6, rows, items.astype(np.int32))
    distinct = sorted(set(pairs))
    assert whole.items.tolist() == [item for _, item in distinct]
    assert whole.num_allowed(np.arange(6)).tolist() == [41 - sum(row == r for row, _ in distinct) for r in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(excluded_module, "_FILTER_CHUNK", chunk)
        chunked = ExcludedItems.from_pairs(41, 6, rows, items.astype(np.int32))
    np.testing.assert_array_equal(chunked.filter_bits, whole.filter_bits)


def test_the_filter_rarely_asks_for_a_bisection() -> None:
    items = np.arange(0, 100_000, 7, dtype=np.int32)
    excluded = ExcludedItems.from_pairs(100_000, 1, np.zeros(len(items), np.int64), items)
    absent = np.setdiff1d(np.arange(100_000), items)
    assert excluded.may_contain(np.zeros(len(absent), np.int64), absent).mean() < 1 / 15


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 4097, 65_537])
def test_permutation_is_one(size: int) -> None:
    order = Permutation(size, derive_key(size))
    shuffled = order(np.arange(size))
    assert np.array_equal(np.sort(shuffled), np.arange(size))
    assert np.array_equal(order(np.arange(size // 2, size)), shuffled[size // 2 :])
    assert size < 100 or abs(np.corrcoef(shuffled, np.arange(size))[0, 1]) < 4 / np.sqrt(size)
