"""Recommendations from a bundle, in two stages; a batch job and the Serve graph call these very functions.

A query becomes candidates (`recall`) and candidates become recommendations (`rerank`); the Serve graph may run the two
in different processes. One query is one kernel call: an answer does not depend on what else is asked at the time. This
module does not know external ids or HTTP.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Integers
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.fold_in import FoldIn
from ray_recsys.core.recommending.rerank import Rerank
from ray_recsys.core.recommending.user_row import UserRow, known_row

Source = Literal["two-stage", "fold-in", "popular"]


def _no_items() -> Int32s:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for one user, in indices."""

    user_idx: int | None = None
    """None: not a user of the bundle."""
    history: Int32s = field(default_factory=_no_items)
    """Items that the user liked beside those that the bundle knows of, oldest first; with it the user is folded in."""
    k: int = 10
    num_candidates: int = 200
    exclude_seen: bool = True
    """Whether the user's seen items and the history are kept out."""
    exclude_items: Int32s = field(default_factory=_no_items)


@dataclass(frozen=True, slots=True)
class Candidates:
    """What recall hands to rerank: `item_idx` int32[<= C], and the row of a user who was folded in."""

    item_idx: Int32s
    source: Source
    folded_in: UserRow | None = None


@dataclass(frozen=True, slots=True)
class Recommendations:
    """Best first: `item_idx` int32[<= k] and `scores` float32[<= k] (logits; counts if the source is popular)."""

    item_idx: Int32s
    scores: Float32s
    source: Source


class Recommender:
    """Both stages over one bundle; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._model = bundle.load_model()
        self._recall = bundle.load_recall()
        self._rerank = Rerank(self._model)
        self._fold_in = FoldIn(self._model)

    def recommend(self, query: Query) -> Recommendations:
        """Returns at most k items for a query: fewer only where fewer are eligible."""
        return self.rerank(query, self.recall(query))

    def recall(self, query: Query) -> Candidates:
        """Stage 1: returns the candidates of a query; see `Candidates`."""
        seen = self._seen(query.user_idx)
        excluded = np.unique(
            np.concatenate([query.exclude_items, *([seen, query.history] if query.exclude_seen else [])])
        )
        num_candidates = max(query.num_candidates, query.k)
        if query.user_idx is None and not query.history.size:
            return Candidates(self._popular(num_candidates, excluded), "popular")
        row, source = self._row(query, seen)
        items = self._recall.search(row.recall_vector(), num_candidates, excluded)
        return Candidates(items, source, row if source == "fold-in" else None)

    def rerank(self, query: Query, candidates: Candidates) -> Recommendations:
        """Stage 2: returns the best k of the candidates, best first, ties by item_idx."""
        if candidates.source == "popular":
            items = candidates.item_idx[: query.k]
            return Recommendations(items, self.bundle.catalogue.counts[items].astype(np.float32), "popular")
        user = candidates.folded_in
        if user is None:
            assert query.user_idx is not None
            user = known_row(self._model, query.user_idx)
        items, scores = self._rerank.best(user, candidates.item_idx, query.k)
        return Recommendations(items, scores, candidates.source)

    def _seen(self, user_idx: int | None) -> Int32s:
        return _no_items() if user_idx is None else self.bundle.seen.of(user_idx)

    def _row(self, query: Query, seen: Int32s) -> tuple[UserRow, Source]:
        if query.history.size:
            return self._fold_in.row(np.concatenate([seen, query.history])), "fold-in"
        assert query.user_idx is not None
        return known_row(self._model, query.user_idx), "two-stage"

    def _popular(self, num_candidates: int, excluded: Integers) -> Int32s:
        # item indices are in order of popularity
        first = np.arange(min(num_candidates + len(excluded), len(self.bundle.catalogue)), dtype=np.int32)
        return first[~np.isin(first, excluded)][:num_candidates]
