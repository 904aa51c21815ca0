"""Loss of recall with N candidates: recall(N) → rerank against reranking the whole catalogue, for many N at once.

The candidates of a user are the first N of the recall order, as `CandidateIndex` returns them: unseen items by
descending inner product, ties by item_idx. Rerank orders them as it orders the catalogue, without the other items.

Shapes: B users, R held-out items, C the largest N, I items.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.arrays import Bools, Float32s, Float64s, Int64s
from ray_recsys.core.evaluation.candidates import Split, UserBatch, unseen_batches
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.evaluation.metrics import RankedLists, ndcg, recall
from ray_recsys.core.evaluation.protocols import ranks_by_user
from ray_recsys.core.evaluation.ranking import TieOrder, check_finite, top_k
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.contract import DenseFactors, Model

NUM_CANDIDATES = (50, 100, 150, 200, 300, 400, 500, 750, 1000)
SHARE_TO_KEEP = 0.99
_K = 10
_NOT_FOUND = np.int64(1) << 40  # rank of an item that is no candidate


class TwoStagePoint(BaseModel):
    """Both stages with N candidates."""

    model_config = ConfigDict(frozen=True)

    num_candidates: int
    """N."""
    candidate_recall: float
    """Share of the held-out items among the candidates, mean over users."""
    ndcg: float
    """NDCG@10 of recall(N) → rerank."""
    share_of_full: float
    """Of the NDCG@10 of reranking the whole catalogue; 1 where that is 0."""
    gain: float
    """NDCG@10 of recall(N) → rerank minus that of recall alone, mean over the same users."""
    gain_standard_error: float
    gain_p_value: float
    """Two-sided, of the paired z-test that the gain is 0."""


class TwoStageResult(BaseModel):
    """The curve over N of one model."""

    model_config = ConfigDict(frozen=True)

    full_ndcg: float
    """NDCG@10 of reranking the whole catalogue."""
    recall_ndcg: float
    """NDCG@10 of the recall order alone."""
    points: tuple[TwoStagePoint, ...]
    smallest_sufficient: int | None
    """Smallest N from which on at least 99 % of the full NDCG@10 is kept; None: none of those measured."""

    @classmethod
    def of(cls, sums: MetricSums) -> Self:
        """Returns the curve from the sums of `two_stage_sums`."""
        means, errors = sums.means(), sums.standard_errors()
        points = []
        for n in (int(name.split("@")[1]) for name in means if name.startswith("candidate_recall@")):
            gain, error = means[f"gain@{n}"], errors[f"gain@{n}"]
            points.append(
                TwoStagePoint(
                    num_candidates=n,
                    candidate_recall=means[f"candidate_recall@{n}"],
                    ndcg=means[f"ndcg@{n}"],
                    share_of_full=means[f"ndcg@{n}"] / means["full"] if means["full"] else 1.0,
                    gain=gain,
                    gain_standard_error=error,
                    gain_p_value=math.erfc(abs(gain) / error / math.sqrt(2)) if error else float(gain == 0),
                )
            )
        is_enough = [all(later.share_of_full >= SHARE_TO_KEEP for later in points[i:]) for i in range(len(points))]
        sufficient = next((p.num_candidates for p, enough in zip(points, is_enough, strict=True) if enough), None)
        return cls(
            full_ndcg=means["full"], recall_ndcg=means["recall"], points=tuple(points), smallest_sufficient=sufficient
        )


def two_stage_sums(
    model: Model,
    recall_model: Model,
    histories: Histories,
    *,
    recipe: EvaluateRecipe,
    split: Split,
    seed: int,
    share: float = 1.0,
    num_candidates: Sequence[int] = NUM_CANDIDATES,
) -> MetricSums:
    """Returns the sums, over the users who have held-out items in a split, that `TwoStageResult` is made of.

    Args:
        model: Reranks.
        recall_model: Recalls; may be the same.
        histories: U users.
        recipe: Users scored at once.
        split: Whose held-out items are looked for.
        seed: Of the order of ties and of the sample of users.
        share: Of the users; see `choose_users`.
        num_candidates: Ns; those above the size of the catalogue are the catalogue.

    Raises:
        StageError: A score is NaN or infinite; names the user.
    """
    batches = unseen_batches(histories, num_items=model.num_items, recipe=recipe, split=split, seed=seed, share=share)
    return MetricSums.total(
        MetricSums.of_values(dict(_values(model, recall_model, batch, seed, sorted(num_candidates))))
        for batch in batches
    )


def _values(
    model: Model, recall_model: Model, batch: UserBatch, seed: int, num_candidates: Sequence[int]
) -> Iterator[tuple[str, Float64s]]:
    rows, items = batch.held_out_rows, batch.held_out_items
    scores = model.scores(model.users(batch.user_idx))
    check_finite(scores, batch.user_idx)
    recall_scores = _recall_scores(recall_model, batch.user_idx)
    for values in (scores, recall_scores):
        values[batch.seen_rows, batch.seen_items] = -np.inf
    candidates = top_k(recall_scores, min(num_candidates[-1], batch.num_items))[rows]
    is_own = candidates == items[:, None]
    position = np.where(is_own.any(axis=1), is_own.argmax(axis=1), _NOT_FOUND)
    num_before = np.cumsum(_is_before(scores, candidates, batch, seed), axis=1)

    def ndcg_of(ranks: Int64s) -> Float64s:
        return ndcg(RankedLists(ranks, rows, np.arange(len(batch.user_idx))), _K)

    alone = ndcg_of(position + 1)
    yield "recall", alone
    yield "full", ndcg_of(ranks_by_user(scores, rows, items, batch.user_idx, seed))
    recalled = RankedLists(position + 1, rows, np.arange(len(batch.user_idx)))
    for n in num_candidates:
        last = min(n, candidates.shape[1]) - 1
        both = ndcg_of(np.where(position <= last, 1 + num_before[:, last], _NOT_FOUND))
        yield f"candidate_recall@{n}", recall(recalled, n)
        yield f"ndcg@{n}", both
        yield f"gain@{n}", both - alone


def _recall_scores(model: Model, user_idx: Int64s) -> Float32s:
    users, space = model.users(user_idx), model.recall_space()
    if space is None:
        return model.scores(users)
    assert isinstance(users, DenseFactors)
    scores: Float32s = users.values[:, : space.query_width] @ space.item_vectors.T
    return scores


def _is_before(scores: Float32s, candidates: Int64s, batch: UserBatch, seed: int) -> Bools:
    """Returns which candidates are ranked before each held-out item by their scores, ties as in `ranks_of`; [R, C]."""
    rows, items = batch.held_out_rows, batch.held_out_items
    own = scores[rows, items][:, None]
    found = np.where(candidates >= 0, scores[rows[:, None], candidates], -np.inf)
    is_before = found > own
    tied_rows, tied_columns = np.nonzero((found == own) & (candidates != items[:, None]))
    order = TieOrder(seed, batch.user_idx[rows])
    keys = order.keys(tied_rows, candidates[tied_rows, tied_columns])
    is_before[tied_rows, tied_columns] = keys < order.keys(tied_rows, items[tied_rows])
    return is_before
