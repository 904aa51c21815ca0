"""Turns a request into a query: ids become a bundle's indices, and limits are checked."""

from dataclasses import dataclass

import numpy as np

from ray_recsys.config import ServeRecipe
from ray_recsys.core.arrays import Int32s
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query
from ray_recsys.core.vocabulary import Vocabulary
from ray_recsys.serving.problems import invalid_value, unknown_id
from ray_recsys.serving.schemas import ExternalId, RecommendRequest


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A query, and the number of history items that the bundle does not contain."""

    query: Query
    num_unknown_history: int


def resolve(request: RecommendRequest, bundle: Bundle, limits: ServeRecipe) -> ResolvedRequest:
    """Returns the query of a request.

    An unknown user counts as no user; unknown items are ignored, those of the history counted.

    Raises:
        Problem: A number or a list is above its limit, or the user id is empty.
    """
    check_limit("k", request.k, limits.max_k)
    num_candidates = request.num_candidates or limits.num_candidates
    check_limit("num_candidates", num_candidates, limits.max_candidates)
    for field in ("history", "exclude_items"):
        _check_length(field, len(getattr(request, field)), limits.max_history)
    if request.user_id == "":
        raise invalid_value("user_id", "", "at least 1 character", "user_id is empty; omit it for an anonymous user")
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


def _check_length(field: str, length: int, limit: int) -> None:
    if length > limit:
        raise invalid_value(field, f"{length} items", limit, f"{field} has {length} items: the maximum is {limit}")


def _item_indices(ids: tuple[ExternalId, ...], bundle: Bundle) -> tuple[Int32s, int]:
    if not ids:
        return np.zeros(0, np.int32), 0
    found = bundle.catalogue.vocabulary.lookup(ids)
    return found.known.astype(np.int32), found.num_unknown
