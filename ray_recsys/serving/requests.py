"""From a request's ids to a query's indices, and back to an answer's items, by one bundle.

This module does not know where the stages run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ray_recsys.config import ServeRecipe
from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query
from ray_recsys.serving.problems import invalid_value
from ray_recsys.serving.schemas import ExternalId, Item, RecommendRequest, ScoredItem


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A query, and how many items of the request's history the bundle does not know."""

    query: Query
    num_unknown_history: int


def check_limit(field: str, value: int, limit: int) -> None:
    """Raises the problem of a number above its limit."""
    if value > limit:
        raise invalid_value(field, value, limit)


def resolve(request: RecommendRequest, bundle: Bundle, limits: ServeRecipe) -> ResolvedRequest:
    """Returns the query of a request.

    An unknown user is nobody in particular; unknown items of the history are counted, those to exclude left out.

    Raises:
        Problem: A number or a list is above its limit, or an id is empty.
    """
    check_limit("k", request.k, limits.max_k)
    num_candidates = request.num_candidates or limits.num_candidates
    check_limit("num_candidates", num_candidates, limits.max_candidates)
    for field in ("history", "exclude_items"):
        _check_length(field, len(getattr(request, field)), limits.max_history)
    if request.user_id == "":
        raise invalid_value("user_id", "", "at least 1 character", "user_id is empty; leave it out for nobody")
    history, num_unknown = _item_indices(request.history, bundle)
    query = Query(
        user_idx=None if request.user_id is None else bundle.users.find(request.user_id),
        history=history,
        k=request.k,
        num_candidates=num_candidates,
        exclude_seen=request.exclude_seen,
        exclude_items=_item_indices(request.exclude_items, bundle)[0],
    )
    return ResolvedRequest(query, num_unknown)


def _check_length(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise invalid_value(field, f"{length} items", limit, f"{field} has {length} items: at most {limit} are allowed")


def _item_indices(ids: tuple[ExternalId, ...], bundle: Bundle) -> tuple[Int32s, int]:
    if not ids:
        return np.zeros(0, np.int32), 0
    found = bundle.catalogue.vocabulary.lookup(ids)
    return found.known.astype(np.int32), found.num_unknown


def show_items(bundle: Bundle, item_idx: Iterable[int]) -> list[Item]:
    """Returns items as an answer shows them."""
    shown = bundle.catalogue.describe(item_idx)
    return [Item(item_id=item.item_id, title=item.title, category=item.category) for item in shown]


def show_scored(bundle: Bundle, item_idx: Int32s, scores: Float32s) -> list[ScoredItem]:
    """Returns items with their scores as an answer shows them."""
    return [
        ScoredItem(item_id=item.item_id, title=item.title, category=item.category, score=score)
        for item, score in zip(bundle.catalogue.describe(item_idx), scores.tolist(), strict=True)
    ]
