"""Item counts over all partitions, summed by ranges of item codes, so that no task holds all counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_recsys.core.arrays import Bools, Int32s, Int64s, Integers
from ray_recsys.core.exchange import Exchange, Handle

RANGE_ITEMS = 1 << 20
"""Item codes that one task sums."""


@dataclass(frozen=True, slots=True)
class CountSummary:
    """Summary of a range of counts for the driver."""

    num_in_training: int
    num_held_out_only: int
    num_rare: int
    """Items in training with too few training interactions."""


@dataclass(frozen=True, slots=True)
class ItemTotals:
    """The counts of all items."""

    ranges: list[Handle]
    """(training, held-out) interactions of each item code of a range, int64[2, n]."""
    summary: CountSummary


def num_ranges(num_items: int) -> int:
    """Returns the number of ranges of item codes."""
    return max(1, -(-num_items // RANGE_ITEMS))


def count_items(codes: Integers, is_training: Bools, num_items: int) -> list[Int32s]:
    """Returns for each range (code, training rows, held-out rows) of the items that occur, int32[3, items].

    Args:
        codes: Of the items of rows, [n].
        is_training: Whether each row is a training interaction, bool[n].
        num_items: Of the log.
    """
    items = np.flatnonzero(np.bincount(codes))
    size = int(items[-1]) + 1 if len(items) else 0
    counts = [np.bincount(codes[mask], minlength=size)[items] for mask in (is_training, ~is_training)]
    stacked = np.stack([items, *counts]).astype(np.int32)
    ends = np.searchsorted(items, [number * RANGE_ITEMS for number in range(1, num_ranges(num_items))])
    return [np.ascontiguousarray(part) for part in np.split(stacked, ends, axis=1)]


def sum_counts(
    counts: Sequence[Sequence[Handle]],
    num_items: int,
    min_interactions: int,
    exchange: Exchange,
    *,
    minuend: ItemTotals | None = None,
) -> ItemTotals:
    """Sums counts over partitions, one task per range.

    Args:
        counts: Of each partition, its `count_items`.
        num_items: Of the log.
        min_interactions: Items with fewer in training are rare.
        exchange: Runs the tasks.
        minuend: Totals from which the counts are taken away.
    """
    inputs = [
        [None if minuend is None else minuend.ranges[number], *(of_partition[number] for of_partition in counts)]
        for number in range(num_ranges(num_items))
    ]
    left = exchange.run(_SumCounts(num_items, min_interactions), inputs, 1, stage="counting items")
    reports = [part.report for part in left]
    summary = CountSummary(
        num_in_training=sum(report.num_in_training for report in reports),
        num_held_out_only=sum(report.num_held_out_only for report in reports),
        num_rare=sum(report.num_rare for report in reports),
    )
    return ItemTotals([part.parts[0] for part in left], summary)


@dataclass(frozen=True, slots=True)
class _SumCounts:
    num_items: int
    min_interactions: int

    def __call__(self, number: int, minuend: Int64s | None, *counts: Int32s) -> tuple[CountSummary, Sequence[Any]]:
        first = number * RANGE_ITEMS
        totals = np.zeros((2, min(RANGE_ITEMS, self.num_items - first)), np.int64)
        for items, *of_items in counts:
            totals[:, items - first] += of_items
        if minuend is not None:
            totals = minuend - totals
        training, held_out = totals
        is_rare = (training > 0) & (training < self.min_interactions)
        summary = CountSummary(
            num_in_training=int(np.count_nonzero(training)),
            num_held_out_only=int(np.count_nonzero((training == 0) & (held_out > 0))),
            num_rare=int(np.count_nonzero(is_rare)),
        )
        return summary, (totals,)


def training_counts(ranges: Sequence[Int64s]) -> Int64s:
    """Returns the training interactions of each item code, int64[I]."""
    return np.concatenate([part[0] for part in ranges])


def are_common(ranges: Sequence[Int64s], min_interactions: int) -> Bools:
    """Returns whether each item code has enough training interactions, bool[I]."""
    return training_counts(ranges) >= min_interactions
