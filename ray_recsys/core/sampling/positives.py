"""A window of positives, from tables of whole histories, and the samples made of them.

A sample is a positive with its weight, its rating or its negatives: a pure function of the histories, the recipe's feed
and seed, and the epoch. Knows nothing of order, batches or processes.
B positives, N negatives, U users, n positives here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.config import FeedRecipe, Recipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s
from ray_recsys.core.histories import interactions_from_table
from ray_recsys.core.sampling.epoch_plan import Piece
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.weights import positive_weights
from ray_recsys.errors import ArtifactError

_CHUNK = 8192  # positives drawn for at once: what is worked on stays in a core's cache


@dataclass(frozen=True, slots=True)
class Samples:
    """B positives: `item_idx[:, 0]` is the positive, the other N columns its negatives (none for ratings)."""

    user_idx: Int64s
    item_idx: Int32s
    weight: Float32s
    rating: Float32s | None

    def take(self, places: npt.NDArray[Any] | slice) -> "Samples":
        """Returns the samples at the given places."""
        rating = None if self.rating is None else self.rating[places]
        return Samples(self.user_idx[places], self.item_idx[places], self.weight[places], rating)

    @staticmethod
    def concatenate(parts: Sequence["Samples"]) -> "Samples":
        """Returns the samples of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        ratings = [part.rating for part in parts if part.rating is not None]
        return Samples(
            np.concatenate([part.user_idx for part in parts]),
            np.concatenate([part.item_idx for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate(ratings) if ratings else None,
        )


@dataclass(frozen=True, slots=True)
class Positives:
    """Training interactions in the order of the histories, with what is needed to draw for any of them."""

    user_idx: Int64s
    """Of each row, int64[U]."""
    starts: Int64s
    """Place of each row's first training interaction here, int64[U]; below 0 where a piece begins inside a history."""
    rows: Int32s
    """Row of each positive, int32[n]."""
    items: Int32s
    """Item of each positive, int32[n]."""
    weights: Float32s | None
    ratings: Float32s | None
    """int32[n] and float32[n]; None: all 1, and no ratings."""
    excluded: ExcludedItems | None
    """What may not be drawn for each row; None: no negatives are."""

    @classmethod
    def from_table(cls, table: pa.Table, piece: Piece, num_items: int, recipe: Recipe) -> Self:
        """Returns a piece of a partition.

        Args:
            table: The whole partition; at least the columns of `needed_columns`.
            piece: Which of its training interactions.
            num_items: I.
            recipe: Feed and objective.

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
                "train.objective = 'explicit', but the prepared set has no ratings; prepare it with input.rating_column"
            )
        weights = positive_weights(training, recipe.feed)
        rows = training.rows().astype(np.int32)[part]
        excluded = None if is_explicit else _exclude(table, num_items, recipe.feed)
        if excluded is not None and (exhausted := excluded.num_allowed(np.arange(len(table))) == 0).any():
            weights = np.ones(len(training.item_idx), np.float32) if weights is None else weights
            weights[np.repeat(exhausted, training.lengths)] = 0
        return cls(
            user_idx=table["user_idx"].to_numpy(),
            starts=training.offsets[:-1] - part.start,
            rows=rows,
            items=training.item_idx[part],
            weights=None if weights is None else weights[part],
            ratings=training.rating[part] if is_explicit and training.rating is not None else None,
            excluded=excluded,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Returns the positives of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        first_rows = np.cumsum([0, *(len(part.user_idx) for part in parts)])
        first_places = np.cumsum([0, *(len(part.items) for part in parts)])
        weights = None
        if any(part.weights is not None for part in parts):
            weights = np.concatenate([_ones(len(p.items)) if p.weights is None else p.weights for p in parts])
        ratings = [part.ratings for part in parts if part.ratings is not None]
        excluded = [part.excluded for part in parts if part.excluded is not None]
        return cls(
            user_idx=np.concatenate([part.user_idx for part in parts]),
            starts=np.concatenate([part.starts + place for part, place in zip(parts, first_places, strict=False)]),
            rows=np.concatenate([part.rows + np.int32(row) for part, row in zip(parts, first_rows, strict=False)]),
            items=np.concatenate([part.items for part in parts]),
            weights=weights,
            ratings=np.concatenate(ratings) if ratings else None,
            excluded=ExcludedItems.concatenate(excluded) if excluded else None,
        )

    @property
    def size(self) -> int:
        """Number of positives, n."""
        return len(self.items)

    @property
    def num_without_negatives(self) -> int:
        """Positives of users who may get no item at all: they weigh 0, and stand in their own negatives' places."""
        if self.excluded is None:
            return 0
        exhausted = self.excluded.num_allowed(np.arange(len(self.user_idx))) == 0
        return int(np.count_nonzero(exhausted[self.rows])) if exhausted.any() else 0

    def samples(self, places: Int64s, epoch: int, sampler: NegativeSampler) -> Samples:
        """Returns the samples of the positives at the given places, with the epoch's negatives."""
        size = len(places)
        num_negatives = 0 if self.excluded is None else sampler.num_negatives
        user_idx = np.empty(size, np.int64)
        item_idx = np.empty((size, 1 + num_negatives), np.int32)
        for begin in range(0, size, _CHUNK):
            part = slice(begin, begin + _CHUNK)
            rows = self.rows[places[part]]
            user_idx[part] = self.user_idx[rows]
            item_idx[part, 0] = self.items[places[part]]
            if self.excluded is not None:
                position = places[part] - self.starts[rows]
                item_idx[part, 1:] = sampler.draw(epoch, user_idx[part], position, self.excluded, rows)
        weight = _ones(size) if self.weights is None else self.weights[places]
        if self.excluded is not None and self.weights is not None and len(out := np.flatnonzero(weight == 0)):
            is_exhausted = self.excluded.num_allowed(self.rows[places[out]]) == 0
            item_idx[out[is_exhausted]] = item_idx[out[is_exhausted], :1]
        return Samples(user_idx, item_idx, weight, None if self.ratings is None else self.ratings[places])


def needed_columns(recipe: Recipe) -> list[str]:
    """Returns the columns of a partition from which its positives are made."""
    columns = ["user_idx", "item_idx"]
    if recipe.train.objective == "explicit":
        columns.append("rating")
    elif recipe.feed.exclude_held_out:
        columns += ["validation_item_idx", "test_item_idx"]
    return [*columns, "repetition"] if recipe.feed.weight_by_repetition else columns


def _exclude(table: pa.Table, num_items: int, recipe: FeedRecipe) -> ExcludedItems:
    prefixes = ("", "validation_", "test_") if recipe.exclude_held_out else ("",)
    parts = [interactions_from_table(table, prefix) for prefix in prefixes]
    rows = np.concatenate([part.rows() for part in parts])
    items = np.concatenate([part.item_idx for part in parts])
    return ExcludedItems.from_pairs(num_items, len(table), rows, items)


def _ones(size: int) -> Float32s:
    return np.ones(size, np.float32)
