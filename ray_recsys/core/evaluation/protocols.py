"""Metric sums of a scorer over users, with full ranking or sampled candidates.

full: one list per user, all items that the user has not seen. sampled: one list per held-out item, the item and N items
that the user has not seen, the same for every scorer. Seen are the training items and, for the test split, the
validation items as well; test items are unknown to an evaluation on validation, and count there as any other item.

Shapes: B users, R held-out items, C candidates, I items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Float32s, Int64s
from ray_recsys.core.evaluation.metrics import MetricSums, RankedLists, RatingErrors
from ray_recsys.core.evaluation.ranking import TieOrder, check_finite, ranks_of
from ray_recsys.core.evaluation.unseen_items import draw_unseen
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.sampling.excluded import ExcludedItems

Split = Literal["validation", "test"]

_MAX_SCORES = 1 << 24  # scores held at once, 64 MB: a batch has fewer users where the catalogue is large


def protocol_label(recipe: EvaluateRecipe) -> str:
    """Returns the protocol as it is written beside a metric: `full`, or e.g. `sampled-99`."""
    return "full" if recipe.protocol == "full" else f"sampled-{recipe.num_sampled}"


def evaluate_users(
    scorer: Scorer,
    histories: Histories,
    *,
    num_items: int,
    recipe: EvaluateRecipe,
    split: Split,
    seed: int,
    has_ratings: bool = False,
) -> MetricSums:
    """Returns the metric sums over the users who have held-out items in a split.

    Args:
        scorer: Of the whole catalogue.
        histories: U users.
        num_items: I.
        recipe: Protocol, Ks, and users scored at once.
        split: Whose held-out items are ranked.
        seed: Of sampled candidates and of the order of ties.
        has_ratings: Whether scores are predicted ratings, whose errors are summed too.

    Raises:
        StageError: A score is NaN or infinite; names the user.
    """
    held_out = histories.test if split == "test" else histories.validation
    seen = [histories.training] + ([histories.validation] if split == "test" else [])
    rank = _rank_in_full if recipe.protocol == "full" else _rank_in_sampled
    users_per_batch = max(1, min(recipe.users_per_batch, _MAX_SCORES // num_items))
    total = MetricSums()
    for users in _batches(np.flatnonzero(held_out.lengths > 0), users_per_batch):
        batch = _Batch(histories.first_user_idx + users, *_items(held_out, users), *_seen_items(seen, users), num_items)
        ranking = rank(scorer, batch, recipe, seed)
        errors = None
        if has_ratings and held_out.rating is not None:
            errors = RatingErrors.of(ranking.held_out_scores, held_out.rating[_positions(held_out, users)])
        total += MetricSums.of(ranking.lists, ks=recipe.ks, num_candidates=ranking.num_candidates, errors=errors)
    return total


@dataclass(frozen=True, slots=True)
class _Batch:
    """B users with their held-out items, R, and seen items; `*_rows` are rows of `user_idx`."""

    user_idx: Int64s
    held_out_rows: Int64s
    held_out_items: Int64s
    seen_rows: Int64s
    seen_items: Int64s
    num_items: int


@dataclass(frozen=True, slots=True)
class _Ranking:
    lists: RankedLists
    held_out_scores: Float32s
    """Of each held-out item, float32[R]."""
    num_candidates: int


def _rank_in_full(scorer: Scorer, batch: _Batch, recipe: EvaluateRecipe, seed: int) -> _Ranking:  # noqa: ARG001
    scores = scorer.scores(scorer.users(batch.user_idx))
    check_finite(scores, batch.user_idx)
    held_out_scores = scores[batch.held_out_rows, batch.held_out_items]
    scores[batch.seen_rows, batch.seen_items] = -np.inf
    num_users, num_held_out = len(batch.user_idx), len(batch.held_out_rows)
    ranks = np.empty(num_held_out, np.int64)
    # As many held-out items at a time as there are users, since a user may have any number of them.
    for start in range(0, num_held_out, num_users):
        part = slice(start, start + num_users)
        rows = batch.held_out_rows[part]
        own_scores = scores if num_held_out == num_users else scores[rows]
        ranks[part] = ranks_of(own_scores, batch.held_out_items[part], TieOrder(seed, batch.user_idx[rows]))
    lists = RankedLists(ranks, batch.held_out_rows, np.arange(num_users))
    return _Ranking(lists, held_out_scores, scores.size - len(batch.seen_items))


def _rank_in_sampled(scorer: Scorer, batch: _Batch, recipe: EvaluateRecipe, seed: int) -> _Ranking:
    rows, own = batch.held_out_rows, batch.held_out_items
    users, num_lists = batch.user_idx[rows], len(own)
    excluded = ExcludedItems.from_pairs(
        batch.num_items,
        len(batch.user_idx),
        np.concatenate([batch.seen_rows, rows]),
        np.concatenate([batch.seen_items, own]),
    )
    drawn, is_drawn = draw_unseen(users, own, excluded, rows, num_drawn=recipe.num_sampled, seed=seed)
    candidates = np.concatenate([own[:, None], drawn], axis=1)
    scores = scorer.scores(scorer.users(users), candidates)
    check_finite(scores, users)
    held_out_scores = scores[:, 0].copy()
    scores[:, 1:][~is_drawn] = -np.inf
    ranks = ranks_of(scores, np.zeros(num_lists, np.int64), TieOrder(seed, users, candidates))
    lists = RankedLists(ranks, np.arange(num_lists), rows)
    return _Ranking(lists, held_out_scores, num_lists + int(is_drawn.sum()))


def _batches(users: Int64s, size: int) -> Iterator[Int64s]:
    for start in range(0, len(users), size):
        yield users[start : start + size]


def _positions(part: Interactions, users: Int64s) -> Int64s:
    """Returns the positions in a part of the interactions of some users."""
    lengths = part.lengths[users]
    starts = part.offsets[users] - (np.cumsum(lengths) - lengths)
    positions: Int64s = np.arange(int(lengths.sum())) + np.repeat(starts, lengths)
    return positions


def _items(part: Interactions, users: Int64s) -> tuple[Int64s, Int64s]:
    """Returns (row in `users` of each item's user, item) of the interactions of some users."""
    rows = np.repeat(np.arange(len(users)), part.lengths[users])
    return rows, part.item_idx[_positions(part, users)].astype(np.int64)


def _seen_items(parts: list[Interactions], users: Int64s) -> tuple[Int64s, Int64s]:
    rows, items = zip(*(_items(part, users) for part in parts), strict=True)
    return np.concatenate(rows), np.concatenate(items)
