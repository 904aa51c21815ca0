"""Turns a bundle's item indices into the items of a response."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query
from ray_recsys.core.vocabulary import ExternalId
from ray_recsys.serving.schemas import Item, RecommendedItem, ScoredItem, SeenItem

MAX_REASONS = 3


@dataclass(frozen=True, slots=True)
class ItemWriter:
    """Writes items of one bundle; with `string_ids`, their ids as strings."""

    bundle: Bundle
    string_ids: bool = False

    def items(self, item_idx: Iterable[int]) -> list[Item]:
        """Returns items without a score."""
        return [
            Item(item_id=self._id(item.item_id), title=item.title, category=item.category)
            for item in self.bundle.catalogue.describe(item_idx)
        ]

    def scored(self, item_idx: Int32s, scores: Float32s) -> list[ScoredItem]:
        """Returns items with their scores."""
        return [
            ScoredItem(item_id=self._id(item.item_id), title=item.title, category=item.category, score=score)
            for item, score in zip(self.bundle.catalogue.describe(item_idx), scores.tolist(), strict=True)
        ]

    def recommended(
        self, item_idx: Int32s, scores: Float32s, because: Sequence[Int32s] | None = None
    ) -> list[RecommendedItem]:
        """Returns items with their scores and, if given, the items that explain each."""
        reasons = [None] * len(item_idx) if because is None else [self.items(one) for one in because]
        described = self.bundle.catalogue.describe(item_idx)
        return [
            RecommendedItem(
                item_id=self._id(item.item_id), title=item.title, category=item.category, score=score, because=reason
            )
            for item, score, reason in zip(described, scores.tolist(), reasons, strict=True)
        ]

    def seen(self, user_idx: int, limit: int) -> list[SeenItem]:
        """Returns the items that a user has seen, latest first, with ratings if the bundle has them."""
        item_idx = self.bundle.seen.of(user_idx)[::-1][:limit]
        ratings = self.bundle.seen.ratings_of(user_idx)
        # the shortest text of a float32: 0.1 instead of 0.10000000149
        shown = [None] * len(item_idx) if ratings is None else [float(str(one)) for one in ratings[::-1][:limit]]
        return [
            SeenItem(item_id=self._id(item.item_id), title=item.title, category=item.category, rating=rating)
            for item, rating in zip(self.bundle.catalogue.describe(item_idx), shown, strict=True)
        ]

    def _id(self, external_id: ExternalId) -> ExternalId:
        return str(external_id) if self.string_ids else external_id


def explain(bundle: Bundle, query: Query, item_idx: Int32s) -> list[Int32s]:
    """Returns for each recommended item the user's items that are among its neighbours, nearest first, at most 3."""
    seen = query.history
    if query.user_idx is not None:
        seen = np.concatenate([bundle.seen.of(query.user_idx), seen])
    neighbours = bundle.neighbours.item_idx[item_idx]
    is_seen = np.isin(neighbours, seen)
    return [near[own][:MAX_REASONS] for near, own in zip(neighbours, is_seen, strict=True)]
