"""Cuts and labels against brute force over sorted lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.config import SplitRecipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.preparing.blocks import Block, LogSummary
from ray_recsys.core.preparing.ids import PackedIds
from ray_recsys.core.preparing.rows import TEST, TRAINING, VALIDATION
from ray_recsys.core.preparing.splits import (
    count_times,
    cuts_from_fractions,
    find_cut,
    find_cuts,
    global_time,
    leave_one_out,
    random_per_user,
)
from tests.executors import EXECUTOR

TIMES = st.lists(
    st.integers(0, 20) | st.integers(-(10**9), 10**9) | st.integers(1_600_000_000_000_000, 1_600_000_000_900_000),
    min_size=1,
    max_size=60,
)


class Counted:
    """A histogram of a list of times that counts how often it is asked."""

    def __init__(self, times: list[int]) -> None:
        self.times = np.array(times, np.int64)
        self.num_calls = 0

    def __call__(self, low: int, width: int, bins: int) -> Int64s:
        self.num_calls += 1
        bin_ = (self.times - low) // width
        return np.bincount(bin_[(bin_ >= 0) & (bin_ < bins)], minlength=bins)


def brute_force_cut(times: list[int], num_before: int) -> int:
    """A cut is after the first moment, and at most just after the last."""
    candidates = sorted({min(times) + 1, *(time + 1 for time in times)})
    return next(cut for cut in candidates if sum(time < cut for time in times) >= num_before)


@given(TIMES, st.data())
def test_a_cut_is_the_earliest_with_enough_rows_before_it(times: list[int], data: st.DataObject) -> None:
    num_before = data.draw(st.integers(0, len(times)))
    histogram = Counted(times)
    assert find_cut(histogram, (min(times), max(times)), num_before) == brute_force_cut(times, num_before)
    assert histogram.num_calls <= 1 + math.log(max(times) - min(times) + 1, 65_536)


@given(TIMES, st.sampled_from([0.0, 0.1, 0.3]), st.sampled_from([0.0, 0.1, 0.25]))
def test_the_periods_hold_at_most_the_fractions(times: list[int], validation: float, test: float) -> None:
    split = SplitRecipe(method="global_time", validation_fraction=validation, test_fraction=test)
    validation_from, test_from = cuts_from_fractions(Counted(times), (min(times), max(times)), len(times), split)
    assert validation_from <= test_from
    labels = global_time(np.array(times), validation_from, test_from)
    assert np.count_nonzero(labels == TEST) <= round(len(times) * test)
    assert np.count_nonzero(labels != TRAINING) <= round(len(times) * test) + round(len(times) * validation)
    assert labels.tolist() == [(time >= validation_from) + (time >= test_from) for time in times]


def block_of(times_us: list[int]) -> Block:
    none = np.zeros(0, np.int64)
    return Block({"time_us": np.array(times_us, np.int64)}, PackedIds(none, None), 0, none, none)


@settings(max_examples=30)
@given(TIMES, st.data())
def test_cuts_of_blocks_are_those_of_the_log(times: list[int], data: st.DataObject) -> None:
    unit_us = data.draw(st.sampled_from([1, 1_000]))
    parts = np.array_split(np.array(times, np.int64) * unit_us, data.draw(st.integers(1, 3)))
    blocks = [block_of(part.tolist()) for part in parts if len(part)]
    summary = LogSummary(
        rows_kept=len(times), time_unit_us=unit_us, time_range_us=(min(times) * unit_us, max(times) * unit_us)
    )
    split = SplitRecipe(method="global_time")
    expected = cuts_from_fractions(Counted(times), (min(times), max(times)), len(times), split)
    assert find_cuts(summary, blocks, split, EXECUTOR) == expected


def test_cuts_that_the_recipe_gives_need_no_histogram() -> None:
    summary = LogSummary(rows_kept=9, time_unit_us=1_000, time_range_us=(0, 9_000_000))
    given_cuts = SplitRecipe(method="global_time", validation_from_s=3, test_from_s=5)
    assert find_cuts(summary, ["missing"], given_cuts, EXECUTOR) == (3_000, 5_000)
    assert find_cuts(summary, ["missing"], SplitRecipe(), EXECUTOR) is None
    assert find_cuts(LogSummary(), [], given_cuts, EXECUTOR) is None


def test_times_outside_the_bins_are_not_counted() -> None:
    block = block_of([9, 10, 19, 20, 29, 30, 35])
    assert count_times((1, 10, 10, 2), 0, block)[1][0].tolist() == [2, 2]
    assert count_times((10, 0, 1, 3), 0, block)[1][0].tolist() == [1, 2, 2]


@given(st.lists(st.integers(0, 6), max_size=8))
def test_leave_one_out(lengths: list[int]) -> None:
    expected = [
        label
        for length in lengths
        for label in ([TRAINING] * length if length < 3 else [TRAINING] * (length - 2) + [VALIDATION, TEST])
    ]
    assert leave_one_out(np.array(lengths, np.int64)).tolist() == expected


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=6),
    st.sampled_from([0.0, 0.1, 0.25, 0.5]),
    st.sampled_from([0.0, 0.1, 0.4]),
    st.integers(0, 3),
)
def test_a_random_split_is_a_function_of_seed_user_and_item(
    lengths: list[int], test: float, validation: float, seed: int
) -> None:
    split = SplitRecipe(method="random_per_user", validation_fraction=validation, test_fraction=test)
    rng = np.random.default_rng(seed)
    of_user = rng.integers(0, 2**63, len(lengths)).astype(np.uint64)
    user_hash = np.repeat(of_user, lengths)
    item_hash = rng.integers(0, 2**63, sum(lengths)).astype(np.uint64)
    labels = random_per_user(np.array(lengths), user_hash, item_hash, split, seed)
    start = 0
    for user, length in enumerate(lengths):
        mine = slice(start, start + length)
        num_test = min(math.floor(length * test + 0.5), max(length - 1, 0))
        num_validation = min(math.floor(length * validation + 0.5), max(length - 1 - num_test, 0))
        counts = np.bincount(labels[mine], minlength=3)
        assert counts.tolist() == [length - num_test - num_validation, num_validation, num_test]
        alone = random_per_user(np.array([length]), of_user[user].repeat(length), item_hash[mine], split, seed)
        assert alone.tolist() == labels[mine].tolist(), "other users make no difference"
        back = random_per_user(np.array([length]), of_user[user].repeat(length), item_hash[mine][::-1], split, seed)
        assert back.tolist()[::-1] == labels[mine].tolist(), "neither does the order"
        start += length


def test_another_seed_is_another_random_split() -> None:
    split = SplitRecipe(method="random_per_user", test_fraction=0.5)
    hashes = np.arange(40, dtype=np.uint64)
    labels = [random_per_user(np.array([40]), hashes * 0, hashes, split, seed).tolist() for seed in (1, 1, 2)]
    assert labels[0] == labels[1]
    assert labels[0] != labels[2]


def test_too_large_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing to train on"):
        SplitRecipe(validation_fraction=0.5, test_fraction=0.5)
