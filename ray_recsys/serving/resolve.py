"""Turns a request into a query: ids become a bundle's indices, and limits are checked."""

from dataclasses import dataclass

import numpy as np

from ray_recsys.config import ServeRecipe
from ray_recsys.core.arrays import Int32s
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query
from ray_recsys.core.vocabulary import Lookup, Vocabulary
from ray_recsys.serving.problems import invalid_value, unknown_id
from ray_recsys.serving.schemas import ExternalId, RecommendRequest, ScoreRequest


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A query, and the number of history items that the bundle does not contain."""

    query: Query
    num_unknown_history: int


def resolve(
    request: RecommendRequest, bundle: Bundle, limits: ServeRecipe, listed: Int32s | None = None
) -> ResolvedRequest:
    """Returns the query of a request; `listed` are the items of its list, ascending.

    An unknown user counts as no user; unknown items are ignored, those of the history counted.

    Raises:
        Problem: A number or a list is above its limit.
    """
    check_limit("k", request.k, limits.max_k)
    num_candidates = request.num_candidates or limits.num_candidates
    check_limit("num_candidates", num_candidates, limits.max_candidates)
    for field in ("history", "exclude_items"):
        check_length(field, len(getattr(request, field)), limits.max_history)
    check_length("allowed_items", len(request.allowed_items or ()), limits.max_allowed)
    history, num_unknown = _item_indices(request.history, bundle)
    query = Query(
        user_idx=None if request.user_id is None else bundle.users.find(request.user_id),
        history=history,
        k=request.k,
        num_candidates=num_candidates,
        exclude_seen=request.exclude_seen,
        exclude_items=_item_indices(request.exclude_items, bundle)[0],
        allowed=_allowed(request, bundle, listed),
        category=request.category,
        diversity=request.diversity,
    )
    return ResolvedRequest(query, num_unknown)


def _allowed(request: RecommendRequest, bundle: Bundle, listed: Int32s | None) -> Int32s | None:
    if request.allowed_items is None:
        return listed
    named = np.unique(_item_indices(request.allowed_items, bundle)[0])
    return named if listed is None else np.intersect1d(named, listed, assume_unique=True)


def resolve_scores(request: ScoreRequest, bundle: Bundle, limits: ServeRecipe) -> tuple[Query, Lookup]:
    """Returns the query that ranks exactly the items of a request, and the indices of these.

    Raises:
        Problem: A list is above its limit.
    """
    check_length("item_ids", len(request.item_ids), limits.max_candidates)
    check_length("history", len(request.history), limits.max_history)
    found = bundle.catalogue.vocabulary.lookup(request.item_ids)
    items = np.unique(found.known).astype(np.int32)
    query = Query(
        user_idx=None if request.user_id is None else bundle.users.find(request.user_id),
        history=_item_indices(request.history, bundle)[0],
        k=max(1, len(items)),
        num_candidates=max(1, len(items)),
        exclude_seen=False,
        allowed=items,
    )
    return query, found


def check_limit(field: str, value: int, limit: int) -> None:
    """Raises the problem of a number above its limit."""
    if value > limit:
        raise invalid_value(field, value, limit)


def find_id(vocabulary: Vocabulary, external_id: ExternalId, field: str, among: str) -> int:
    """Returns the index of an id that must be known; `among` is "users" or "items".

    Raises:
        Problem: The id is unknown.
    """
    found = vocabulary.find(external_id)
    if found is None:
        raise unknown_id(field, external_id, among)
    return found


def check_length(field: str, length: int, limit: int) -> None:
    """Raises the problem of a list that is too long."""
    if length > limit:
        raise invalid_value(field, f"{length} items", limit, f"{field} has {length} items: the maximum is {limit}")


def _item_indices(ids: tuple[ExternalId, ...], bundle: Bundle) -> tuple[Int32s, int]:
    if not ids:
        return np.zeros(0, np.int32), 0
    found = bundle.catalogue.vocabulary.lookup(ids)
    return found.known.astype(np.int32), found.num_unknown
