"""Chooses how recall searches a bundle's item vectors: all of them while that is quick, else tuned lists."""

import faiss
import numpy as np

from ray_recsys.config import BundleRecipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.inverted_lists import SEED, build_lists, tune
from ray_recsys.core.models.contract import DenseFactors, Model, RecallSpace
from ray_recsys.core.recommending.bundle import RecallReport
from ray_recsys.core.recommending.candidate_index import CandidateIndex

NUM_SAMPLED = 256  # users


def build_index(model: Model, space: RecallSpace, recipe: BundleRecipe) -> tuple[CandidateIndex, RecallReport]:
    """Returns the index of a recall space and its description.

    Args:
        model: The recall model; its users are the queries that the index is tuned on.
        space: Its recall space.
        recipe: From which size on lists are used, and the recall that they must reach.
    """
    vectors = np.ascontiguousarray(space.item_vectors, np.float32)
    if vectors.size <= recipe.max_exact_values:
        return CandidateIndex(vectors), RecallReport(method="exact")
    lists = build_lists(vectors, faiss.METRIC_INNER_PRODUCT)
    query, num_candidates = _sample_queries(model, space.query_width), min(recipe.tuned_candidates, len(vectors))
    exact = faiss.knn(query, vectors, num_candidates, metric=faiss.METRIC_INNER_PRODUCT)[1]
    recall = tune(lists, query, exact, recipe.min_recall)
    if recall is None:
        return CandidateIndex(vectors), RecallReport(method="exact")
    report = RecallReport(
        method="lists",
        num_lists=lists.nlist,
        num_probes=lists.nprobe,
        recall=round(recall, 4),
        num_candidates=num_candidates,
    )
    return CandidateIndex(vectors, lists), report


def _sample_queries(model: Model, width: int) -> Float32s:
    rng = np.random.default_rng(SEED)
    users = np.sort(rng.choice(model.num_users, min(NUM_SAMPLED, model.num_users), replace=False))
    factors = model.users(users)
    assert isinstance(factors, DenseFactors)
    return np.ascontiguousarray(factors.values[:, :width])
