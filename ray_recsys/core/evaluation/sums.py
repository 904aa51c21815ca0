"""All measurements of one model as sums over users: overall, by bucket, and exposure of items.

User buckets are by activity (training interactions of the user), item buckets by popularity (training interactions of
the held-out item, each held-out item counting alone). Bounds are quartiles, over users and over items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from ray_recsys.core.arrays import Bools, Float64s, Int64s
from ray_recsys.core.evaluation.bootstrap import ResampledSums
from ray_recsys.core.evaluation.candidates import items_of
from ray_recsys.core.evaluation.exposure import Exposure
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.metrics import values_by_user
from ray_recsys.core.evaluation.protocols import RankedUsers
from ray_recsys.core.executor import Executor
from ray_recsys.core.histories import Histories
from ray_recsys.core.prepared import PreparedSet

_QUANTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Half-open ranges of a count: bucket b has `bounds[b] <= count < bounds[b + 1]`.

    Attributes:
        bounds: Ascending and distinct; the first is the lowest count and the last one above the highest.
    """

    bounds: tuple[int, ...]

    @classmethod
    def of(cls, values: Int64s, frequencies: Int64s) -> Self:
        """Returns the quartiles of counts given as distinct ascending values and their frequencies."""
        held = np.cumsum(frequencies)
        inner = [int(values[np.searchsorted(held, share * held[-1])]) for share in _QUANTILES]
        return cls(tuple(sorted({int(values[0]), *inner, int(values[-1]) + 1})))

    @property
    def labels(self) -> list[str]:
        """`<lowest>–<highest count>` of each bucket."""
        pairs = zip(self.bounds[:-1], self.bounds[1:], strict=True)
        return [f"{low:,}" if high == low + 1 else f"{low:,}–{high - 1:,}" for low, high in pairs]

    def masks(self, counts: Int64s) -> list[Bools]:
        """Returns which of some counts each bucket has."""
        bucket = np.searchsorted(self.bounds, counts, side="right") - 1
        return [bucket == number for number in range(len(self.bounds) - 1)]


def activity_buckets(prepared: PreparedSet, executor: Executor) -> Buckets:
    """Returns the quartiles of the users' numbers of training interactions."""
    parts = list(
        executor.map(
            partial(_activity_counts, prepared),
            len(prepared.manifest.partitions),
            stage=f"counting interactions of users of {prepared.location}",
        )
    )
    values, where = np.unique(np.concatenate([values for values, _ in parts]), return_inverse=True)
    frequencies = np.zeros(len(values), np.int64)
    np.add.at(frequencies, where, np.concatenate([counts for _, counts in parts]))
    return Buckets.of(values, frequencies)


def _activity_counts(prepared: PreparedSet, partition: int) -> tuple[Int64s, Int64s]:
    lengths = prepared.read_columns(partition, ["item_idx"])["item_idx"]
    counts = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in lengths.chunks] or [np.zeros(0, int)])
    values, frequencies = np.unique(counts.astype(np.int64), return_counts=True)
    return values, frequencies


def popularity_buckets(item_counts: Int64s) -> Buckets:
    """Returns the quartiles of the items' numbers of training interactions."""
    return Buckets.of(*np.unique(item_counts, return_counts=True))


@dataclass(frozen=True, slots=True)
class Frame:
    """Context of the sums: the catalogue's training counts, int64[I], and the buckets."""

    item_counts: Int64s
    activity: Buckets
    popularity: Buckets

    @classmethod
    def of(cls, prepared: PreparedSet, executor: Executor) -> Self:
        """Returns the frame of a prepared set."""
        counts = prepared.item_counts()
        return cls(counts, activity_buckets(prepared, executor), popularity_buckets(counts))


@dataclass(frozen=True, slots=True)
class EvaluationSums:
    """Of one model over some users; those of disjoint users add up.

    Attributes:
        total: Over all users.
        by_activity: Over the users of each activity bucket.
        by_popularity: Over the held-out items of each popularity bucket, each as a list and a user of its own.
        exposure: None unless whole catalogues were ranked.
        resampled: Over resamples of all users; None unless asked for.
    """

    total: MetricSums
    by_activity: tuple[MetricSums, ...] = ()
    by_popularity: tuple[MetricSums, ...] = ()
    exposure: Exposure | None = None
    resampled: ResampledSums | None = None

    @classmethod
    def of(
        cls,
        ranked: RankedUsers,
        histories: Histories,
        frame: Frame,
        ks: Sequence[int],
        weights: Float64s | None = None,
    ) -> Self:
        """Returns the sums of some ranked users of `histories`, who have weights in resamples, float64[R, B]."""
        rows = ranked.user_idx - histories.first_user_idx
        users = frame.activity.masks(histories.training.lengths[rows])
        items = frame.popularity.masks(frame.item_counts[ranked.item_idx])
        candidates = ranked.num_candidates
        exposure = None
        if ranked.top is not None:
            exposure = Exposure.of(ranked.top, _profile_popularity(histories, rows, frame.item_counts), ks)
        return cls(
            ranked.sums(ks),
            tuple(
                MetricSums.of(
                    ranked.lists.of_users(mask), ks=ks, num_candidates=int(candidates[mask[ranked.lists.user_of]].sum())
                )
                for mask in users
            ),
            tuple(
                MetricSums.of(
                    ranked.lists.item_by_item(mask),
                    ks=ks,
                    num_candidates=int(candidates[ranked.lists.list_of[mask]].sum()),
                )
                for mask in items
            ),
            exposure,
            None if weights is None else ResampledSums.of(values_by_user(ranked.lists, ks), weights),
        )

    def __add__(self, other: Self) -> Self:
        """Returns the sums over the users of both, who must be different ones."""
        exposure, resampled = self.exposure, self.resampled
        if exposure is not None and other.exposure is not None:
            exposure = exposure + other.exposure
        if resampled is not None and other.resampled is not None:
            resampled = resampled + other.resampled
        return type(self)(
            self.total + other.total,
            _added(self.by_activity, other.by_activity),
            _added(self.by_popularity, other.by_popularity),
            exposure or other.exposure,
            resampled or other.resampled,
        )

    def resampled_means(self) -> dict[str, Float64s]:
        """Returns the value of each metric in each resample, float64[R]; nothing unless resampled."""
        return {} if self.resampled is None else self.resampled.means()


def _added(left: Sequence[MetricSums], right: Sequence[MetricSums]) -> tuple[MetricSums, ...]:
    return tuple(a + b for a, b in zip(left, right, strict=True)) if left and right else (*left, *right)


def _profile_popularity(histories: Histories, rows: Int64s, item_counts: Int64s) -> Float64s:
    """Returns the mean training count of each user's training items, float64[B]; 0 for none."""
    own, items = items_of(histories.training, rows)
    totals = np.bincount(own, weights=item_counts[items], minlength=len(rows))
    means: Float64s = totals / np.maximum(histories.training.lengths[rows], 1)
    return means
