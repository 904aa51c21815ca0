"""Which interactions are held out: each row becomes training, validation or test.

Leave-one-out: a user's last is the test, the one before the validation; ties in time by item id; users of fewer than 3
interactions are all training. Global time: by two moments. Random: a pure function of seed, user id and item id; n
interactions give round(n x fraction) to the test, then to the validation (halves up), and at least 1 to the training.
Rows arrive deduplicated, in order of user and time.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ray_recsys.config import SplitRecipe
from ray_recsys.core.arrays import Int64s, UInt64s
from ray_recsys.core.preparing.id_hash import mix
from ray_recsys.core.preparing.scatter import read_arrow
from ray_recsys.core.preparing.user_rows import TEST, TRAINING, VALIDATION

Labels = npt.NDArray[np.int8]
MIN_FOR_LEAVE_ONE_OUT = 3
Histogram = Callable[[int, int, int], Int64s]
"""(low, width, bins) → how many times fall into each bin [low + i x width, low + (i + 1) x width)."""
_BINS = 65_536


def leave_one_out(lengths: Int64s) -> Labels:
    """Returns the labels of users' rows, given each user's number of rows, int64[U]."""
    labels = np.full(int(lengths.sum()), TRAINING, np.int8)
    ends = np.cumsum(lengths)[lengths >= MIN_FOR_LEAVE_ONE_OUT]
    labels[ends - 1] = TEST
    labels[ends - 2] = VALIDATION
    return labels


def global_time(times: npt.NDArray[np.integer], validation_from: int, test_from: int) -> Labels:
    """Returns the labels of rows by their times; a cut belongs to the period that begins with it."""
    return (times >= validation_from).astype(np.int8) + (times >= test_from).astype(np.int8)


def random_per_user(lengths: Int64s, user_hash: UInt64s, item_hash: UInt64s, split: SplitRecipe, seed: int) -> Labels:
    """Returns labels drawn inside each user.

    Args:
        lengths: Rows of each user, int64[U].
        user_hash: Hash of each row's user id, uint64[n].
        item_hash: Hash of each row's item id, uint64[n]; within a user items come in order of time or id, which
            settles equal draws.
        split: Fractions.
        seed: Of the recipe.
    """
    draws = mix(mix(user_hash ^ mix(np.full(1, seed, np.uint64))) ^ item_hash)
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((item_hash, draws, user))
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    num_test = np.minimum(_round_half_up(lengths * split.test_fraction), np.maximum(lengths - 1, 0))
    num_validation = np.minimum(
        _round_half_up(lengths * split.validation_fraction), np.maximum(lengths - 1 - num_test, 0)
    )
    labels = np.empty(len(user), np.int8)
    is_test = place < num_test[user]
    is_held_out = place < (num_test + num_validation)[user]
    labels[order] = np.where(is_test, TEST, np.where(is_held_out, VALIDATION, TRAINING))
    return labels


def _round_half_up(values: npt.NDArray[np.floating]) -> Int64s:
    rounded: Int64s = np.floor(values + 0.5).astype(np.int64)
    return rounded


def find_cut(histogram: Histogram, time_range: tuple[int, int], num_before: int) -> int:
    """Returns the earliest moment with at least `num_before` rows before it; exact, by histograms of ever finer bins.

    Args:
        histogram: Counts the rows of the whole log.
        time_range: First and last moment of the log.
        num_before: Rows wanted before the cut.
    """
    low, high = time_range[0], time_range[1] + 1
    before = 0
    while high - low > 1:
        width = -(-(high - low) // _BINS)
        cumulated = before + np.cumsum(histogram(low, width, _BINS))
        place = int(np.searchsorted(cumulated, num_before))
        if width == 1:
            return min(low + place + 1, high)
        before = int(cumulated[place - 1]) if place else before
        low, high = low + place * width, min(low + (place + 1) * width, high)
    return high


def count_block_times(block: Path, unit_us: int, low: int, width: int, bins: int) -> Int64s:
    """Returns how many of a staging block's times fall into each bin, int64[bins]; others are not counted."""
    times = read_arrow(block / "rows.arrow")["time_us"].to_numpy() // unit_us
    places = (times - low) // width
    counts: Int64s = np.bincount(places[(places >= 0) & (places < bins)], minlength=bins)
    return counts


def cuts_from_fractions(
    histogram: Histogram, time_range: tuple[int, int], num_rows: int, split: SplitRecipe
) -> tuple[int, int]:
    """Returns (validation_from, test_from) such that the periods hold out at most the shares asked for."""
    num_test = round(num_rows * split.test_fraction)
    num_validation = round(num_rows * split.validation_fraction)
    return (
        find_cut(histogram, time_range, num_rows - num_test - num_validation),
        find_cut(histogram, time_range, num_rows - num_test),
    )
