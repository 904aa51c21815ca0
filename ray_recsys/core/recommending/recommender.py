"""Recommendations from a bundle, in two stages; batch jobs and the HTTP service call these functions alike.

A query becomes candidates (`recall`) and candidates become recommendations (`rerank`); the two may run in different
processes. One query is one kernel call: an answer does not depend on what else is asked at the time.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Integers
from ray_recsys.core.models.contract import Model, UserFactors
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.diversity import diversify

Source = Literal["two-stage", "fold-in", "popular"]
"""How a recommendation was found: for a known user, from a history, or by popularity alone."""


def _no_items() -> Int32s:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Query:
    """A request for one user, in indices."""

    user_idx: int | None = None
    """None: not a user of the bundle."""
    history: Int32s = field(default_factory=_no_items)
    """Items of the user beside those that the bundle knows of, oldest first; with it the user is folded in."""
    k: int = 10
    num_candidates: int = 200
    exclude_seen: bool = True
    """Whether the user's seen items and the history are excluded."""
    exclude_items: Int32s = field(default_factory=_no_items)
    allowed: Int32s | None = None
    """Distinct items, ascending; None: the whole catalogue."""
    category: str | None = None
    """Only items of this category; None: of any."""
    diversity: float = 0.0
    """0..1: how much similarity to the items above costs; 0: the order of the scores."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """The result of recall: `item_idx` int32[<= C], and the user's factors of the rerank model."""

    item_idx: Int32s
    source: Source
    user: UserFactors | None
    """None for popular items, which are not reranked."""


@dataclass(frozen=True, slots=True)
class Recommendations:
    """Best first: `item_idx` int32[<= k] and `scores` float32[<= k] (counts if the source is popular)."""

    item_idx: Int32s
    scores: Float32s
    source: Source


class Recommender:
    """Both stages over one bundle; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._model = bundle.load_model()
        self._recall_model = bundle.load_recall_model() or self._model
        self._recall = bundle.load_recall(self._recall_model)

    def recommend(self, query: Query) -> Recommendations:
        """Returns at most k items for a query: fewer only where fewer are eligible."""
        return self.rerank(query, self.recall(query))

    def recall(self, query: Query) -> Candidates:
        """Stage 1: returns the candidates of a query."""
        seen = _no_items() if query.user_idx is None else self.bundle.seen.of(query.user_idx)
        excluded = np.unique(
            np.concatenate([query.exclude_items, *([seen, query.history] if query.exclude_seen else [])])
        )
        num_candidates, allowed = max(query.num_candidates, query.k), self._allowed(query)
        user, source = self._factors(self._model, query, seen)
        if user is None:
            return Candidates(self._popular(num_candidates, excluded, allowed), "popular", None)
        if self._recall_model is self._model:
            return Candidates(self._recall.search(user, num_candidates, excluded, allowed), source, user)
        recall_user, _ = self._factors(self._recall_model, query, seen)
        if recall_user is None:
            return Candidates(self._popular(num_candidates, excluded, allowed), source, user)
        return Candidates(self._recall.search(recall_user, num_candidates, excluded, allowed), source, user)

    def rerank(self, query: Query, candidates: Candidates) -> Recommendations:
        """Stage 2: returns the best k of the candidates, best first, ties by item_idx."""
        items = candidates.item_idx
        if candidates.user is None:
            items = items[: query.k]
            return Recommendations(items, self.bundle.catalogue.counts[items].astype(np.float32), "popular")
        scores = self._model.scores(candidates.user, items[np.newaxis])[0]
        order = np.lexsort((items, -scores))
        if query.diversity > 0:
            order = order[diversify(items[order], scores[order], self.bundle.neighbours, query.k, query.diversity)]
        order = order[: query.k]
        return Recommendations(items[order], scores[order], candidates.source)

    def _allowed(self, query: Query) -> Int32s | None:
        if query.category is None:
            return query.allowed
        in_category = self.bundle.catalogue.in_category(query.category)
        return in_category if query.allowed is None else np.intersect1d(in_category, query.allowed, assume_unique=True)

    def _factors(self, model: Model, query: Query, seen: Int32s) -> tuple[UserFactors | None, Source]:
        """Returns the factors of a query's user; None: nothing is known of them, or the model cannot use it."""
        if query.history.size:
            folded_in = model.fold_in(np.concatenate([seen, query.history]), query.user_idx)
            if folded_in is not None:
                return folded_in, "fold-in"
        if query.user_idx is None:
            return None, "popular"
        return model.users(np.array([query.user_idx])), "two-stage"

    def _popular(self, num_candidates: int, excluded: Integers, allowed: Int32s | None) -> Int32s:
        # item indices are in order of popularity
        if allowed is not None:
            return np.setdiff1d(allowed, excluded, assume_unique=True)[:num_candidates].astype(np.int32)
        first = np.arange(min(num_candidates + len(excluded), len(self.bundle.catalogue)), dtype=np.int32)
        return first[~np.isin(first, excluded)][:num_candidates]
