"""Positives of a window, made from tables of whole histories, and the samples drawn for them.

A sample is a positive with its weight and its rating or negatives: a pure function of the histories, the recipe and the
epoch. Letters: B positives asked for, N negatives, U users, n positives held.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.config import FeedRecipe, Recipe, num_recent_items
from ray_recsys.core.arrays import Float32s, Float64s, Int32s, Int64s, Integers, entries_after
from ray_recsys.core.histories import Interactions, interactions_from_table
from ray_recsys.core.sampling.epoch_plan import Piece
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.errors import ArtifactError

_CHUNK = 8192  # positives drawn for at once, so that the working set stays in a core's cache


@dataclass(frozen=True, slots=True)
class Samples:
    """B positives: `item_idx[:, 0]` is the positive, the other N columns its negatives (none for ratings)."""

    user_idx: Int64s
    item_idx: Int32s
    weight: Float32s
    rating: Float32s | None
    recent: Int32s | None = None
    """The user's latest L items before the positive, latest first, int32[B, L]; -1 where there are fewer."""

    def take(self, indices: npt.NDArray[Any] | slice) -> "Samples":
        """Returns the samples at the given indices."""
        rating = None if self.rating is None else self.rating[indices]
        recent = None if self.recent is None else self.recent[indices]
        return Samples(self.user_idx[indices], self.item_idx[indices], self.weight[indices], rating, recent)

    @staticmethod
    def concatenate(parts: Sequence["Samples"]) -> "Samples":
        """Returns the samples of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        ratings = [part.rating for part in parts if part.rating is not None]
        recents = [part.recent for part in parts if part.recent is not None]
        return Samples(
            np.concatenate([part.user_idx for part in parts]),
            np.concatenate([part.item_idx for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate(ratings) if ratings else None,
            np.concatenate(recents) if recents else None,
        )


@dataclass(frozen=True, slots=True)
class Positives:
    """Training interactions in the order of the histories, with what drawing negatives for them needs."""

    user_idx: Int64s
    """User of each row, int64[U]."""
    starts: Int64s
    """Index in `items` of each row's first training interaction, int64[U]; negative if a piece begins mid-history."""
    rows: Int32s
    """Row of each positive, int32[n]."""
    items: Int32s
    """Item of each positive, int32[n]."""
    weights: Float32s | None
    """Weight of each positive, float32[n]; None if all are 1."""
    ratings: Float32s | None
    """Rating of each positive, float32[n]; None unless the objective is explicit."""
    excluded: ExcludedItems | None
    """Items that may not be drawn for each row; None if the objective needs no negatives."""
    before: "ItemsBefore | None" = None
    """Whole histories, if the model wants to see the items before a positive."""

    @classmethod
    def from_table(cls, table: pa.Table, piece: Piece, num_items: int, recipe: Recipe) -> Self:
        """Returns the positives of a piece of a partition.

        Args:
            table: The whole partition, with at least the columns of `needed_columns`.
            piece: Which of its training interactions.
            num_items: I.
            recipe: Objective and feed.

        Raises:
            ArtifactError: The set was prepared without the ratings or repetitions that the recipe needs.
        """
        offsets = interactions_from_table(table.select(["item_idx"]), "").offsets
        first = int(np.searchsorted(offsets, piece.begin, side="right")) - 1
        last = int(np.searchsorted(offsets, piece.end, side="left"))
        table = table.slice(first, last - first)
        training = interactions_from_table(table, "")
        part = slice(piece.begin - int(offsets[first]), piece.end - int(offsets[first]))
        is_explicit = recipe.train.objective == "explicit"
        if is_explicit and training.rating is None:
            raise ArtifactError(
                "train.objective = 'explicit', but the prepared set has no ratings",
                remedy="prepare it with input.rating_column",
            )
        weights = sample_weights(training, recipe.feed)
        excluded = None if is_explicit else _exclude(table, num_items, recipe.feed)
        if excluded is not None and (is_exhausted := excluded.num_allowed(np.arange(len(table))) == 0).any():
            weights = _ones(len(training.item_idx)) if weights is None else weights
            weights[np.repeat(is_exhausted, training.lengths)] = 0
        return cls(
            user_idx=table["user_idx"].to_numpy(),
            starts=training.offsets[:-1] - part.start,
            rows=training.rows().astype(np.int32)[part],
            items=training.item_idx[part],
            weights=None if weights is None else weights[part],
            ratings=training.rating[part] if is_explicit and training.rating is not None else None,
            excluded=excluded,
            before=ItemsBefore.of(training, num_recent_items(recipe.model)),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Returns the positives of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        first_rows = np.cumsum([0, *(len(part.user_idx) for part in parts)])
        first_positives = np.cumsum([0, *(len(part.items) for part in parts)])
        weights = None
        if any(part.weights is not None for part in parts):
            weights = np.concatenate([_ones(len(p.items)) if p.weights is None else p.weights for p in parts])
        ratings = [part.ratings for part in parts if part.ratings is not None]
        excluded = [part.excluded for part in parts if part.excluded is not None]
        return cls(
            user_idx=np.concatenate([part.user_idx for part in parts]),
            starts=np.concatenate([part.starts + n for part, n in zip(parts, first_positives, strict=False)]),
            rows=np.concatenate([part.rows + np.int32(row) for part, row in zip(parts, first_rows, strict=False)]),
            items=np.concatenate([part.items for part in parts]),
            weights=weights,
            ratings=np.concatenate(ratings) if ratings else None,
            excluded=ExcludedItems.concatenate(excluded) if excluded else None,
            before=ItemsBefore.concatenate([part.before for part in parts if part.before is not None]),
        )

    @property
    def size(self) -> int:
        """Number of positives, n."""
        return len(self.items)

    def samples(self, indices: Int64s, epoch: int, sampler: NegativeSampler) -> Samples:
        """Returns the samples of the positives at the given indices, with the epoch's negatives.

        A user who has every item of the catalogue can get no negative: those samples weigh 0, and their positive fills
        the negatives' columns.
        """
        size = len(indices)
        num_negatives = 0 if self.excluded is None else sampler.num_negatives
        user_idx = np.empty(size, np.int64)
        item_idx = np.empty((size, 1 + num_negatives), np.int32)
        recent = None if self.before is None else np.empty((size, self.before.length), np.int32)
        for begin in range(0, size, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            rows = self.rows[indices[part]]
            user_idx[part] = self.user_idx[rows]
            item_idx[part, 0] = self.items[indices[part]]
            position = indices[part] - self.starts[rows]
            if self.before is not None and recent is not None:
                recent[part] = self.before.latest(rows, position)
            if self.excluded is not None:
                item_idx[part, 1:] = sampler.draw(epoch, user_idx[part], position, self.excluded, rows)
        weight = _ones(size) if self.weights is None else self.weights[indices]
        if self.excluded is not None and self.weights is not None and len(out := np.flatnonzero(weight == 0)):
            is_exhausted = self.excluded.num_allowed(self.rows[indices[out]]) == 0
            item_idx[out[is_exhausted]] = item_idx[out[is_exhausted], :1]
        rating = None if self.ratings is None else self.ratings[indices]
        return Samples(user_idx, item_idx, weight, rating, recent)


@dataclass(frozen=True, slots=True)
class ItemsBefore:
    """Histories from which the latest items before a position are looked up.

    Attributes:
        offsets: Row r has the items `offsets[r]:offsets[r + 1]`, oldest first, int64[U + 1].
        items: int32[n].
        length: L, items to look up.
    """

    offsets: Int64s
    items: Int32s
    length: int

    @classmethod
    def of(cls, training: Interactions, length: int) -> "ItemsBefore | None":
        """Returns the training histories; None if no items are wanted."""
        return cls(training.offsets, training.item_idx, length) if length else None

    @classmethod
    def concatenate(cls, parts: Sequence["ItemsBefore"]) -> "ItemsBefore | None":
        """Returns the rows of all parts, in order; None of none."""
        if not parts:
            return None
        ends = np.cumsum([0, *(len(part.items) for part in parts)])
        offsets = [part.offsets[:-1] + end for part, end in zip(parts, ends, strict=False)]
        return cls(
            np.concatenate([*offsets, ends[-1:]]), np.concatenate([part.items for part in parts]), parts[0].length
        )

    def latest(self, rows: Integers, position: Integers) -> Int32s:
        """Returns the L items before a position of each row's history, latest first, int32[B, L]; -1: none."""
        indices = (self.offsets[rows] + position)[:, None] - 1 - np.arange(self.length)
        has_item = indices >= self.offsets[rows][:, None]
        return np.where(has_item, self.items[np.maximum(indices, 0)], np.int32(-1))


def needed_columns(recipe: Recipe) -> list[str]:
    """Returns the columns of a partition from which its positives are made."""
    columns = ["user_idx", "item_idx"]
    if recipe.train.objective == "explicit":
        columns.append("rating")
    elif recipe.feed.exclude_held_out:
        columns += ["validation_item_idx", "test_item_idx"]
    return [*columns, "repetition"] if recipe.feed.weight_by_repetition else columns


def sample_weights(training: Interactions, recipe: FeedRecipe) -> Float32s | None:
    """Returns the weight of each training interaction in the loss, float32; None if the recipe weighs all equally.

    By recency, a weight halves every `recency_half_life` interactions back from the user's last; by repetition, it is
    1 + ln(repetition); with both, it is the product. Each user's weights are then scaled to mean 1.

    Args:
        training: Whole histories, ordered by time.
        recipe: Which weights.

    Raises:
        ArtifactError: Weights by repetition, but the set was prepared without counting repetitions.
    """
    factors: list[Float64s] = []
    if recipe.recency_half_life is not None:
        factors.append(np.exp2(-entries_after(training.lengths) / recipe.recency_half_life))
    if recipe.weight_by_repetition:
        if training.repetition is None:
            raise ArtifactError(
                "feed.weight_by_repetition is set, but the prepared set has no repetitions",
                remedy="prepare it with prepare.deduplicate = 'count'",
            )
        factors.append(1 + np.log(training.repetition))
    if not factors:
        return None
    return _scale_to_mean_one(training, np.prod(factors, axis=0)).astype(np.float32)


def _scale_to_mean_one(training: Interactions, weights: Float64s) -> Float64s:
    lengths = training.lengths
    has_any = lengths > 0
    # reduceat sums from each start to the next one, so users without interactions must not be among the starts.
    sums = np.add.reduceat(weights, training.offsets[:-1][has_any]) if has_any.any() else np.zeros(0)
    scaled: Float64s = weights * np.repeat(lengths[has_any] / sums, lengths[has_any])
    return scaled


def _exclude(table: pa.Table, num_items: int, recipe: FeedRecipe) -> ExcludedItems:
    prefixes = ("", "validation_", "test_") if recipe.exclude_held_out else ("",)
    parts = [interactions_from_table(table, prefix) for prefix in prefixes]
    rows = np.concatenate([part.rows() for part in parts])
    items = np.concatenate([part.item_idx for part in parts])
    return ExcludedItems.from_pairs(num_items, len(table), rows, items)


def _ones(size: int) -> Float32s:
    return np.ones(size, np.float32)
