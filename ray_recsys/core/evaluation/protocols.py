"""Ranks of users' held-out items by a scorer, and their metric sums, with full ranking or sampled candidates.

full: one list per user, all items that the user has not seen. sampled: one list per held-out item, the item and N items
that the user has not seen, the same for every scorer. Seen are the training items and, for the test split, the
validation items as well; test items are unknown to an evaluation on validation, and count there as any other item.

Shapes: B users, R held-out items, C candidates, I items.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Float32s, Int64s
from ray_recsys.core.evaluation.candidates import Split, UserBatch, draw_unseen, unseen_batches
from ray_recsys.core.evaluation.metric_sums import MetricSums, RatingErrors
from ray_recsys.core.evaluation.metrics import RankedLists
from ray_recsys.core.evaluation.ranking import TieOrder, check_finite, ranks_of, top_k
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.contract import Scorer
from ray_recsys.core.sampling.excluded import ExcludedItems


def protocol_label(recipe: EvaluateRecipe) -> str:
    """Returns the protocol's label: `full`, or e.g. `sampled-99`."""
    return "full" if recipe.protocol == "full" else f"sampled-{recipe.num_sampled}"


@dataclass(frozen=True, slots=True)
class RankedUsers:
    """B users with held-out items, ranked.

    Attributes:
        user_idx: int64[B].
        rows: Row in `user_idx` of each held-out item's user, ascending, int64[R].
        item_idx: Of each held-out item, int64[R].
        lists: Their ranks; user u of the lists is row u.
        num_candidates: Of each list, int64[L].
        top: Best items of each user, best first, int64[B, K], -1 where there are fewer; None unless asked for.
        errors: Of predicted ratings, if scores are.
    """

    user_idx: Int64s
    rows: Int64s
    item_idx: Int64s
    lists: RankedLists
    num_candidates: Int64s
    top: Int64s | None
    errors: RatingErrors

    def sums(self, ks: Sequence[int]) -> MetricSums:
        """Returns the metric sums of these users."""
        return MetricSums.of(self.lists, ks=ks, num_candidates=int(self.num_candidates.sum()), errors=self.errors)


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
    """Returns the metric sums over the users who have held-out items in a split; see `rank_users`."""
    ranked = rank_users(
        scorer, histories, num_items=num_items, recipe=recipe, split=split, seed=seed, has_ratings=has_ratings
    )
    return MetricSums.total(part.sums(recipe.ks) for part in ranked)


def rank_users(
    scorer: Scorer,
    histories: Histories,
    *,
    num_items: int,
    recipe: EvaluateRecipe,
    split: Split,
    seed: int,
    has_ratings: bool = False,
    num_top: int = 0,
    share: float = 1.0,
) -> Iterator[RankedUsers]:
    """Yields the users who have held-out items in a split, ranked, in order of their indices.

    Args:
        scorer: Of the whole catalogue.
        histories: U users.
        num_items: I.
        recipe: Protocol, and users scored at once.
        split: Whose held-out items are ranked.
        seed: Of sampled candidates, of the order of ties and of the sample of users.
        has_ratings: Whether scores are predicted ratings, whose errors are summed too.
        num_top: Length of the list of best items, with full ranking; 0: none.
        share: Of the users to rank; see `choose_users`.

    Raises:
        StageError: A score is NaN or infinite; names the user.
    """
    batches = unseen_batches(histories, num_items=num_items, recipe=recipe, split=split, seed=seed, share=share)
    for batch in batches:
        if recipe.protocol == "full":
            ranking = _rank_in_full(scorer, batch, seed, num_top)
        else:
            ranking = _rank_in_sampled(scorer, batch, recipe.num_sampled, seed)
        errors = RatingErrors()
        if has_ratings and batch.held_out_ratings is not None:
            errors = RatingErrors.of(ranking.held_out_scores, batch.held_out_ratings)
        yield RankedUsers(
            batch.user_idx,
            batch.held_out_rows,
            batch.held_out_items,
            ranking.lists,
            ranking.num_candidates,
            ranking.top,
            errors,
        )


@dataclass(frozen=True, slots=True)
class _Ranking:
    lists: RankedLists
    held_out_scores: Float32s
    """Of each held-out item, float32[R]."""
    num_candidates: Int64s
    top: Int64s | None = None


def _rank_in_full(scorer: Scorer, batch: UserBatch, seed: int, num_top: int) -> _Ranking:
    scores = scorer.scores(scorer.users(batch.user_idx))
    check_finite(scores, batch.user_idx)
    held_out_scores = scores[batch.held_out_rows, batch.held_out_items]
    scores[batch.seen_rows, batch.seen_items] = -np.inf
    num_users = len(batch.user_idx)
    ranks = ranks_by_user(scores, batch.held_out_rows, batch.held_out_items, batch.user_idx, seed)
    num_candidates = batch.num_items - np.bincount(batch.seen_rows, minlength=num_users)
    top = top_k(scores, num_top, TieOrder(seed, batch.user_idx)) if num_top else None
    lists = RankedLists(ranks, batch.held_out_rows, np.arange(num_users))
    return _Ranking(lists, held_out_scores, num_candidates, top)


def ranks_by_user(scores: Float32s, rows: Int64s, items: Int64s, user_idx: Int64s, seed: int) -> Int64s:
    """Returns the rank of each held-out item among its user's catalogue, int64[R].

    Args:
        scores: float32[B, I]; -inf is not a candidate.
        rows: Row of each held-out item, int64[R].
        items: Held-out items, int64[R].
        user_idx: int64[B].
        seed: Of the order of ties.
    """
    num_users, num_held_out = len(user_idx), len(rows)
    ranks = np.empty(num_held_out, np.int64)
    # As many held-out items at a time as there are users, since a user may have any number of them.
    for start in range(0, num_held_out, num_users):
        part = slice(start, start + num_users)
        own_scores = scores if num_held_out == num_users else scores[rows[part]]
        ranks[part] = ranks_of(own_scores, items[part], TieOrder(seed, user_idx[rows[part]]))
    return ranks


def _rank_in_sampled(scorer: Scorer, batch: UserBatch, num_sampled: int, seed: int) -> _Ranking:
    rows, own = batch.held_out_rows, batch.held_out_items
    users, num_lists = batch.user_idx[rows], len(own)
    excluded = ExcludedItems.from_pairs(
        batch.num_items,
        len(batch.user_idx),
        np.concatenate([batch.seen_rows, rows]),
        np.concatenate([batch.seen_items, own]),
    )
    drawn, is_drawn = draw_unseen(users, own, excluded, rows, num_drawn=num_sampled, seed=seed)
    candidates = np.concatenate([own[:, None], drawn], axis=1)
    scores = scorer.scores(scorer.users(users), candidates)
    check_finite(scores, users)
    held_out_scores = scores[:, 0].copy()
    scores[:, 1:][~is_drawn] = -np.inf
    ranks = ranks_of(scores, np.zeros(num_lists, np.int64), TieOrder(seed, users, candidates))
    lists = RankedLists(ranks, np.arange(num_lists), rows)
    return _Ranking(lists, held_out_scores, 1 + is_drawn.sum(axis=1))
