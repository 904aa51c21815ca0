"""Which interactions are held out: each row becomes training, validation or test.

Leave-one-out: a user's last is the test, the one before it the validation, ties in time by item id; users with fewer
than 3 interactions are all training. Global time: by two cuts. Random: a pure function of seed, user id and item id; of
n interactions round(n x fraction) go to the test, then to the validation (halves up), and at least 1 to the training.
Given: the test is in separate files; of the rest, the validation is drawn as in the random split.
Rows are deduplicated and in order of user and time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.config import SplitRecipe
from ray_recsys.core.arrays import Int64s, Integers, UInt64s, ranks_in_rows
from ray_recsys.core.counter_random import splitmix64
from ray_recsys.core.exchange import Exchange, Handle
from ray_recsys.core.preparing.blocks import Block, LogSummary
from ray_recsys.core.preparing.ids import hash_ids
from ray_recsys.core.preparing.rows import TEST, TRAINING, VALIDATION, UserRows
from ray_recsys.core.preparing.timestamps import MICROSECONDS

Labels = npt.NDArray[np.int8]
MIN_FOR_LEAVE_ONE_OUT = 3
Histogram = Callable[[int, int, int], Int64s]
"""(low, width, bins) → number of times in each bin [low + i x width, low + (i + 1) x width)."""
_BINS = 65_536


def label_rows(rows: UserRows, user_ids: pa.Array, item_ids: pa.Array, split: SplitRecipe, seed: int) -> Labels:
    """Returns the labels of a partition's rows, unless the split is by time.

    Args:
        rows: In order of user and time; with a given split, labelled where the test file has them.
        user_ids: Of the partition.
        item_ids: Of all items, in order of codes.
        split: Method and fractions.
        seed: Seed of the recipe.
    """
    if split.method == "leave_one_out":
        return leave_one_out(np.bincount(rows.user, minlength=len(user_ids)))
    if split.method != "given":
        return _draw_labels(rows, user_ids, item_ids, split, seed)
    labels = np.zeros(len(rows), np.int8) if rows.label is None else np.array(rows.label, np.int8)
    is_open = labels == TRAINING
    without_test = split.model_copy(update={"test_fraction": 0})
    labels[is_open] = _draw_labels(rows.take(is_open), user_ids, item_ids, without_test, seed)
    return labels


def _draw_labels(rows: UserRows, user_ids: pa.Array, item_ids: pa.Array, split: SplitRecipe, seed: int) -> Labels:
    items, inverse = np.unique(rows.item, return_inverse=True)
    item_hash = hash_ids(item_ids.take(pa.array(items)))[inverse]
    user_hash = hash_ids(user_ids)[rows.user] if len(rows) else np.zeros(0, np.uint64)
    lengths = np.bincount(rows.user, minlength=len(user_ids))
    return random_per_user(lengths, user_hash, item_hash, split, seed)


def leave_one_out(lengths: Int64s) -> Labels:
    """Returns the labels of rows in order of users, given each user's number of rows, int64[U]."""
    labels = np.full(int(lengths.sum()), TRAINING, np.int8)
    ends = np.cumsum(lengths)[lengths >= MIN_FOR_LEAVE_ONE_OUT]
    labels[ends - 1] = TEST
    labels[ends - 2] = VALIDATION
    return labels


def global_time(times: Integers, validation_from: int, test_from: int) -> Labels:
    """Returns the labels of rows by their times; a cut is the first moment of the period that it starts."""
    return (times >= validation_from).astype(np.int8) + (times >= test_from).astype(np.int8)


def random_per_user(lengths: Int64s, user_hash: UInt64s, item_hash: UInt64s, split: SplitRecipe, seed: int) -> Labels:
    """Returns labels drawn within each user.

    Args:
        lengths: Number of rows of each user, int64[U].
        user_hash: Hash of each row's user id, uint64[n].
        item_hash: Hash of each row's item id, uint64[n].
        split: Gives the fractions.
        seed: Seed of the recipe.
    """
    draws = splitmix64(splitmix64(user_hash ^ splitmix64(np.full(1, seed, np.uint64))) ^ item_hash)
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((item_hash, draws, user))
    rank = ranks_in_rows(lengths)
    num_test = np.minimum(_round_half_up(lengths * split.test_fraction), np.maximum(lengths - 1, 0))
    num_validation = np.minimum(
        _round_half_up(lengths * split.validation_fraction), np.maximum(lengths - 1 - num_test, 0)
    )
    labels = np.empty(len(user), np.int8)
    is_test = rank < num_test[user]
    is_held_out = rank < (num_test + num_validation)[user]
    labels[order] = np.where(is_test, TEST, np.where(is_held_out, VALIDATION, TRAINING))
    return labels


def _round_half_up(values: npt.NDArray[np.floating]) -> Int64s:
    rounded: Int64s = np.floor(values + 0.5).astype(np.int64)
    return rounded


def find_cuts(
    summary: LogSummary, blocks: Sequence[Handle], split: SplitRecipe, exchange: Exchange
) -> tuple[int, int] | None:
    """Returns the first moments of validation and test in the log's time unit; None unless the split is by time."""
    unit = summary.time_unit_us
    if split.method != "global_time" or summary.time_range_us is None:
        return None

    def histogram(low: int, width: int, bins: int) -> Int64s:
        stage = "counting the times of the log"
        count = partial(count_times, (unit, low, width, bins))
        counts = exchange.run(count, [[block] for block in blocks], 1, stage=stage)
        (total,) = exchange.run(_sum_histograms, [[of_block.parts[0] for of_block in counts]], 0, stage=stage)
        return total.report

    validation_from, test_from = (
        None if second is None else second * (MICROSECONDS // unit)
        for second in (split.validation_from_s, split.test_from_s)
    )
    if validation_from is None or test_from is None:
        first, last = (moment // unit for moment in summary.time_range_us)
        fitted = cuts_from_fractions(histogram, (first, last), summary.rows_kept, split)
        validation_from = fitted[0] if validation_from is None else validation_from
        test_from = fitted[1] if test_from is None else test_from
    return validation_from, max(validation_from, test_from)


def cuts_from_fractions(
    histogram: Histogram, time_range: tuple[int, int], num_rows: int, split: SplitRecipe
) -> tuple[int, int]:
    """Returns (validation_from, test_from) such that each period holds at most its fraction of the rows."""
    num_test = round(num_rows * split.test_fraction)
    num_validation = round(num_rows * split.validation_fraction)
    return (
        find_cut(histogram, time_range, num_rows - num_test - num_validation),
        find_cut(histogram, time_range, num_rows - num_test),
    )


def find_cut(histogram: Histogram, time_range: tuple[int, int], num_before: int) -> int:
    """Returns the earliest moment with at least `num_before` rows before it; exact, by ever finer histograms.

    Args:
        histogram: Counts the rows of the whole log.
        time_range: First and last moment of the log.
        num_before: Number of rows wanted before the cut.
    """
    low, high = time_range[0], time_range[1] + 1
    before = 0
    while high - low > 1:
        width = -(-(high - low) // _BINS)
        cumulated = before + np.cumsum(histogram(low, width, _BINS))
        bin_ = int(np.searchsorted(cumulated, num_before))
        if width == 1:
            return min(low + bin_ + 1, high)
        before = int(cumulated[bin_ - 1]) if bin_ else before
        low, high = low + bin_ * width, min(low + (bin_ + 1) * width, high)
    return high


def count_times(bins: tuple[int, int, int, int], _number: int, block: Block) -> tuple[None, Sequence[Int64s]]:
    """Outputs the number of a block's times in each bin, int64[bins]; others are not counted.

    Args:
        bins: (time unit in microseconds, low, width, number of bins).
        block: Rows of the log.
    """
    unit_us, low, width, num_bins = bins
    bin_ = (block.columns["time_us"] // unit_us - low) // width
    return None, (np.bincount(bin_[(bin_ >= 0) & (bin_ < num_bins)], minlength=num_bins),)


def _sum_histograms(_number: int, *counts: Int64s) -> tuple[Int64s, Sequence[Any]]:
    total = np.zeros_like(counts[0])
    for of_block in counts:
        total += of_block
    return total, ()
