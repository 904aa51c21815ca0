"""Description of a prepared set: sizes, activity, popularity, times, drops; gathered partition by partition.

Memory does not grow with users or interactions: activity is counted as the number of users per number of interactions,
times as the number of interactions per day.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.arrays import Int64s
from ray_recsys.core.histories import Interactions
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.storage.location import LocationLike

DAY_S = 86_400
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
MAX_CURVE_POINTS = 200
MAX_BINS = 1_000_000
"""Widest range of values that is counted with bins, which takes a tenth of the time of sorting."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Spread(_Frozen):
    """Distribution of interactions over users, or over items."""

    mean: float
    quantiles: dict[str, int]
    """`0.5`: the smallest count that at least half of them do not exceed."""
    gini: float
    """0: all have the same count; close to 1: one has everything."""
    histogram: tuple[tuple[int, int], ...]
    """(count, users or items that have it), ascending; above 200 distinct counts, widening bins by lower end."""


class TimeRange(_Frozen):
    """When the interactions took place, in seconds since 1970 (UTC)."""

    first_s: int
    last_s: int
    interactions_per_day: tuple[tuple[int, int], ...]
    """(first second of the day, interactions), ascending; days are grouped where there are more than 200."""


class Description(_Frozen):
    """Description of a prepared set."""

    data: str
    created_at: str
    num_users: int
    num_items: int
    num_interactions: int
    num_training: int
    num_validation: int
    num_test: int
    density: float
    """Share of all (user, item) pairs that are interactions."""
    activity: Spread
    """Interactions per user, held-out ones included."""
    popularity: Spread
    """Training interactions per item."""
    popularity_curve: tuple[tuple[float, float], ...]
    """(share of the items, most popular first; their share of the training interactions)."""
    time: TimeRange | None
    rows_in: int
    rows_kept: int
    rows_dropped: dict[str, int]
    split: dict[str, Any]


class Tally:
    """Users by number of interactions, and interactions by day; tallies of partitions merge into one."""

    def __init__(self) -> None:
        self.users_by_activity: Counter[int] = Counter()
        self.interactions_by_day: Counter[int] = Counter()
        self.first_s: int | None = None
        self.last_s: int | None = None

    @classmethod
    def of(cls, parts: Iterable[Interactions]) -> Self:
        """Returns the tally of a partition from its training, validation and test interactions."""
        tally = cls()
        parts = list(parts)
        lengths = np.sum([part.lengths for part in parts], axis=0)
        tally.users_by_activity.update(_count(lengths))
        for part in parts:
            if part.timestamp_s is not None and len(part.timestamp_s):
                tally.interactions_by_day.update(_count(part.timestamp_s // DAY_S))
                tally._widen(int(part.timestamp_s.min()), int(part.timestamp_s.max()))
        return tally

    def merge(self, other: "Tally") -> None:
        """Adds another partition's tally."""
        self.users_by_activity.update(other.users_by_activity)
        self.interactions_by_day.update(other.interactions_by_day)
        if other.first_s is not None and other.last_s is not None:
            self._widen(other.first_s, other.last_s)

    def _widen(self, first_s: int, last_s: int) -> None:
        self.first_s = first_s if self.first_s is None else min(self.first_s, first_s)
        self.last_s = last_s if self.last_s is None else max(self.last_s, last_s)

    def time_range(self) -> TimeRange | None:
        """Returns when the interactions took place; None without times."""
        if self.first_s is None or self.last_s is None:
            return None
        days, counts = _sorted_items(self.interactions_by_day)
        stretch = -(-int(days[-1] - days[0] + 1) // MAX_CURVE_POINTS)
        sums = np.zeros(int(days[-1] - days[0]) // stretch + 1, np.int64)
        np.add.at(sums, (days - days[0]) // stretch, counts)
        starts = (days[0] + np.arange(len(sums)) * stretch) * DAY_S
        return TimeRange(first_s=self.first_s, last_s=self.last_s, interactions_per_day=_pairs(starts, sums))


def describe(data: LocationLike) -> Description:
    """Returns the description of a prepared set.

    Raises:
        ArtifactError: Not a prepared set, of another schema version, or damaged.
    """
    prepared = PreparedSet.open(data)
    prepared.verify()
    tally = Tally()
    for partition in range(len(prepared.manifest.partitions)):
        histories = prepared.read_partition(partition)
        tally.merge(Tally.of((histories.training, histories.validation, histories.test)))
    return describe_tally(prepared, tally)


def describe_tally(prepared: PreparedSet, tally: Tally) -> Description:
    """Returns the description from the tally of all partitions."""
    manifest = prepared.manifest
    num_interactions = manifest.num_training + manifest.num_validation + manifest.num_test
    item_counts = prepared.item_counts()
    return Description(
        data=str(prepared.location),
        created_at=manifest.created_at,
        num_users=manifest.num_users,
        num_items=manifest.num_items,
        num_interactions=num_interactions,
        num_training=manifest.num_training,
        num_validation=manifest.num_validation,
        num_test=manifest.num_test,
        density=num_interactions / max(1, manifest.num_users * manifest.num_items),
        activity=spread_of(*_sorted_items(tally.users_by_activity)),
        popularity=spread_of(*np.unique(item_counts, return_counts=True)),
        popularity_curve=concentration(item_counts),
        time=tally.time_range(),
        rows_in=manifest.rows_in,
        rows_kept=manifest.rows_kept,
        rows_dropped=manifest.rows_dropped,
        split=manifest.split,
    )


def spread_of(values: Int64s, frequencies: Int64s) -> Spread:
    """Returns the spread of numbers, given as distinct ascending values and their frequencies."""
    cumulative = np.cumsum(frequencies)
    total = int(cumulative[-1])
    ranks = np.maximum(np.ceil(np.array(QUANTILES) * total).astype(np.int64), 1)
    chosen = values[np.searchsorted(cumulative, ranks)]
    return Spread(
        mean=float(values @ frequencies) / total,
        quantiles={f"{q:g}": int(value) for q, value in zip(QUANTILES, chosen, strict=True)},
        gini=gini(values, frequencies),
        histogram=_histogram(values, frequencies),
    )


def gini(values: Int64s, frequencies: Int64s) -> float:
    """Returns the Gini coefficient of numbers, given as distinct ascending values and their frequencies.

    Source: Lorenz curve by trapezoids; equals half the relative mean absolute difference of all pairs.
    """
    held = np.cumsum(values * frequencies, dtype=np.float64)
    if held[-1] == 0:
        return 0.0
    below = np.concatenate([[0.0], held[:-1]])
    return float(1.0 - ((held + below) @ frequencies) / (held[-1] * frequencies.sum()))


def concentration(item_counts: Int64s) -> tuple[tuple[float, float], ...]:
    """Returns points of (share of the items, share of the interactions) from descending counts, int64[I]."""
    held = np.cumsum(item_counts) / max(1, int(item_counts.sum()))
    num_items = np.unique(np.geomspace(1, len(held), MAX_CURVE_POINTS).round().astype(np.int64))
    return tuple((float(n / len(held)), float(held[n - 1])) for n in num_items)


def _histogram(values: Int64s, frequencies: Int64s) -> tuple[tuple[int, int], ...]:
    if len(values) <= MAX_CURVE_POINTS:
        return _pairs(values, frequencies)
    edges = np.unique(np.geomspace(max(1, values[0]), values[-1] + 1, MAX_CURVE_POINTS).astype(np.int64))
    edges[0] = values[0]
    sums = np.zeros(len(edges), np.int64)
    np.add.at(sums, np.searchsorted(edges, values, side="right") - 1, frequencies)
    return _pairs(edges[sums > 0], sums[sums > 0])


def _count(values: Int64s) -> dict[int, int]:
    if not len(values):
        return {}
    low, high = int(values.min()), int(values.max())
    if high - low > MAX_BINS:
        distinct, counts = np.unique(values, return_counts=True)
    else:
        bins = np.bincount(values - low)
        distinct = np.flatnonzero(bins)
        counts = bins[distinct]
        distinct = distinct + low
    return dict(zip(distinct.tolist(), counts.tolist(), strict=True))


def _sorted_items(counter: Counter[int]) -> tuple[Int64s, Int64s]:
    pairs = np.array(sorted(counter.items()), np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _pairs(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    return tuple(zip(left.tolist(), right.tolist(), strict=True))
