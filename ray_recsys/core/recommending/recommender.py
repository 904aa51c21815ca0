"""Recommendations from a bundle, in two stages; batch jobs and the HTTP service share these functions.

A query becomes candidates (`recall`) and candidates become recommendations (`rerank`); the two may run in different
processes. Queries that come together are searched and scored in one pass; a score then differs by rounding at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Integers
from ray_recsys.core.models.contract import DenseFactors, Model, UserFactors
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.candidate_index import CandidateIndex
from ray_recsys.core.recommending.diversity import diversify
from ray_recsys.core.recommending.top_items import best_first

Source = Literal["two-stage", "fold-in", "popular"]
"""Source of a recommendation: a known user, a history, or popularity alone."""


def _no_items() -> Int32s:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Query:
    """A request for one user, in indices."""

    user_idx: int | None = None
    """None: not a user of the bundle."""
    history: Int32s = field(default_factory=_no_items)
    """The user's items besides those in the bundle, oldest first; given a history, the user is folded in."""
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
    """The result of recall: `item_idx` int32[<= C], ascending, and the user's factors of the rerank model."""

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


class Recaller:
    """Stage 1 over one bundle: its index, its users' histories and the user half of its models.

    Tables are mapped into memory, so unused tables cost nothing. Safe to call from several threads.
    """

    def __init__(self, bundle: Bundle, model: Model | None = None) -> None:
        self.bundle = bundle
        self._model = model or bundle.load_model()
        self._recall_model = bundle.load_recall_model() or self._model
        self._recall = bundle.load_recall(self._recall_model)

    def recall(self, query: Query) -> Candidates:
        """Returns the candidates of a query."""
        return self.recall_all([query])[0]

    def recall_all(self, queries: Sequence[Query]) -> list[Candidates]:
        """Returns the candidates of each query; those that need nothing but the index are searched in one pass."""
        prepared = self._prepare(queries)
        plain = [row for row, (query, one) in enumerate(zip(queries, prepared, strict=True)) if _is_plain(query, one)]
        found: dict[int, Int32s] = {}
        if len(plain) > 1 and isinstance(self._recall, CandidateIndex):
            users = DenseFactors(np.concatenate([_dense(prepared[row].recall_user) for row in plain]))
            counts = [max(queries[row].num_candidates, queries[row].k) for row in plain]
            together = self._recall.search_all(users, counts, [prepared[row].excluded for row in plain])
            found = dict(zip(plain, together, strict=True))
        return [
            Candidates(found[row] if row in found else self._search(query, one), one.source, one.user)
            for row, (query, one) in enumerate(zip(queries, prepared, strict=True))
        ]

    def factors(self, query: Query) -> tuple[UserFactors | None, Source]:
        """Returns the rerank model's factors of a query's user; None: no history, or the model cannot fold in."""
        return factors_of(self._model, query, self._seen(query))

    def _prepare(self, queries: Sequence[Query]) -> list["_Prepared"]:
        seen = [self._seen(query) for query in queries]
        found = _factors_of_all(self._model, queries, seen)
        has_own = self._recall_model is not self._model
        recall_found = _factors_of_all(self._recall_model, queries, seen) if has_own else found
        rows = zip(queries, seen, found, recall_found, strict=True)
        return [
            _Prepared(_excluded(query, own), user, source, None if user is None else recall_user)
            for query, own, (user, source), (recall_user, _) in rows
        ]

    def _search(self, query: Query, prepared: "_Prepared") -> Int32s:
        num_candidates, allowed = max(query.num_candidates, query.k), self._allowed(query)
        if prepared.recall_user is None:
            return self._popular(num_candidates, prepared.excluded, allowed)
        return self._recall.search(prepared.recall_user, num_candidates, prepared.excluded, allowed)

    def _seen(self, query: Query) -> Int32s:
        return _no_items() if query.user_idx is None else self.bundle.seen.of(query.user_idx)

    def _allowed(self, query: Query) -> Int32s | None:
        if query.category is None:
            return query.allowed
        in_category = self.bundle.catalogue.in_category(query.category)
        return in_category if query.allowed is None else np.intersect1d(in_category, query.allowed, assume_unique=True)

    def _popular(self, num_candidates: int, excluded: Integers, allowed: Int32s | None) -> Int32s:
        # item indices are in order of popularity
        if allowed is not None:
            return allowed[~np.isin(allowed, excluded)][:num_candidates].astype(np.int32)
        first = np.arange(min(num_candidates + len(excluded), len(self.bundle.catalogue)), dtype=np.int32)
        return first[~np.isin(first, excluded)][:num_candidates]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A query's inputs of the search."""

    excluded: Integers
    user: UserFactors | None
    source: Source
    recall_user: UserFactors | None


def _excluded(query: Query, seen: Int32s) -> Int32s:
    parts = [query.exclude_items, *([seen, query.history] if query.exclude_seen else [])]
    parts = [part for part in parts if part.size]
    return parts[0] if len(parts) == 1 else np.concatenate([_no_items(), *parts])


def _is_plain(query: Query, prepared: _Prepared) -> bool:
    return query.allowed is None and query.category is None and prepared.recall_user is not None


def _dense(user: UserFactors | None) -> Float32s:
    assert isinstance(user, DenseFactors)
    return user.values


class Reranker:
    """Stage 2 over one bundle: the model's item half. Safe to call from several threads."""

    def __init__(self, bundle: Bundle, model: Model | None = None) -> None:
        self.bundle = bundle
        self._model = model or bundle.load_model()

    def factors(self, query: Query) -> tuple[UserFactors | None, Source]:
        """Returns the model's factors of a query's user; see `Recaller.factors`."""
        seen = _no_items() if query.user_idx is None else self.bundle.seen.of(query.user_idx)
        return factors_of(self._model, query, seen)

    def rerank(self, query: Query, candidates: Candidates) -> Recommendations:
        """Returns the best k of the candidates, best first, ties by item_idx."""
        return self.rerank_all([query], [candidates])[0]

    def rerank_all(self, queries: Sequence[Query], candidates: Sequence[Candidates]) -> list[Recommendations]:
        """Returns the best of each query's candidates; dense factors are scored in one pass."""
        if not queries:
            return []
        scores = self._scores(candidates)
        best = best_first(scores, max(query.k for query in queries))
        return [
            self._answer(query, one, row, kept[: query.k])
            for query, one, row, kept in zip(queries, candidates, scores, best, strict=True)
        ]

    def _scores(self, candidates: Sequence[Candidates]) -> Float32s:
        """Returns the scores of each query's candidates, then -inf, float32[B, C]; of popular items their counts."""
        if len(candidates) == 1 and (user := candidates[0].user) is not None:
            return self._model.scores(user, candidates[0].item_idx[np.newaxis])
        lengths = [len(one.item_idx) for one in candidates]
        scores = np.full((len(candidates), max(lengths)), -np.inf, np.float32)
        dense = [row for row, one in enumerate(candidates) if isinstance(one.user, DenseFactors)]
        if len(dense) > 1:
            items = np.zeros((len(dense), scores.shape[1]), np.int32)
            for number, row in enumerate(dense):
                items[number, : lengths[row]] = candidates[row].item_idx
            users = DenseFactors(np.concatenate([_dense(candidates[row].user) for row in dense]))
            for row, values in zip(dense, self._model.scores(users, items), strict=True):
                scores[row, : lengths[row]] = values[: lengths[row]]
        for row, one in enumerate(candidates):
            if one.user is None:
                scores[row, : lengths[row]] = self.bundle.catalogue.counts[one.item_idx]
            elif len(dense) == 1 or not isinstance(one.user, DenseFactors):
                scores[row, : lengths[row]] = self._model.scores(one.user, one.item_idx[np.newaxis])[0]
        return scores

    def _answer(self, query: Query, candidates: Candidates, scores: Float32s, best: Int32s) -> Recommendations:
        items = candidates.item_idx
        if query.diversity > 0 and candidates.user is not None:
            order = np.argsort(-scores[: len(items)], kind="stable").astype(np.int32)
            best = order[diversify(items[order], scores[order], self.bundle.neighbours, query.k, query.diversity)]
        return Recommendations(items[best], scores[best], candidates.source)


class Recommender:
    """Both stages over one bundle; safe to call from several threads."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        model = bundle.load_model()
        self.recaller, self.reranker = Recaller(bundle, model), Reranker(bundle, model)

    def recommend(self, query: Query) -> Recommendations:
        """Returns at most k items for a query: fewer only where fewer are eligible."""
        return self.rerank(query, self.recall(query))

    def recall(self, query: Query) -> Candidates:
        """Stage 1: returns the candidates of a query."""
        return self.recaller.recall(query)

    def rerank(self, query: Query, candidates: Candidates) -> Recommendations:
        """Stage 2: returns the best k of the candidates, best first, ties by item_idx."""
        return self.reranker.rerank(query, candidates)


def factors_of(model: Model, query: Query, seen: Int32s) -> tuple[UserFactors | None, Source]:
    """Returns a model's factors of a query's user, who has seen these items; None: it cannot fold in."""
    if query.history.size:
        folded_in = model.fold_in(np.concatenate([seen, query.history]), query.user_idx)
        if folded_in is not None:
            return folded_in, "fold-in"
    if query.user_idx is None:
        return None, "popular"
    return model.users(np.array([query.user_idx])), "two-stage"


def _factors_of_all(
    model: Model, queries: Sequence[Query], seen: Sequence[Int32s]
) -> list[tuple[UserFactors | None, Source]]:
    """Returns what `factors_of` does for each query; trained users are looked up together."""
    trained = [row for row, query in enumerate(queries) if query.user_idx is not None and not query.history.size]
    found: dict[int, tuple[UserFactors | None, Source]] = {}
    if len(trained) > 1:
        users = model.users(np.array([queries[row].user_idx for row in trained]))
        found = {row: (users.take(slice(number, number + 1)), "two-stage") for number, row in enumerate(trained)}
    return [
        found[row] if row in found else factors_of(model, query, own)
        for row, (query, own) in enumerate(zip(queries, seen, strict=True))
    ]
