"""Both stages for many N at once equal the recall index and the reranking of its candidates, user by user."""

import math
from pathlib import Path

import numpy as np
import pytest

from ray_recsys.config import EvaluateRecipe
from ray_recsys.core.evaluation.two_stage import TwoStageResult, two_stage_sums
from ray_recsys.core.models.contract import DenseFactors, UserFactors
from ray_recsys.core.recommending.candidate_index import CandidateIndex
from tests.bundles import random_model
from tests.factories import make_prepared_set

NUM_CANDIDATES = (5, 12, 25, 100)


def test_the_curve_equals_index_and_rerank_of_each_user(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_partitions=1)
    model, histories = random_model(60, 40).export(), prepared.read_partition(0)
    sums = two_stage_sums(
        model,
        model,
        histories,
        recipe=EvaluateRecipe(users_per_batch=7),
        split="test",
        seed=1,
        num_candidates=NUM_CANDIDATES,
    )
    result = TwoStageResult.of(sums)
    space = model.recall_space()
    assert space is not None
    index = CandidateIndex(space.item_vectors)

    def query_of(factors: UserFactors) -> np.ndarray:
        assert isinstance(factors, DenseFactors)
        query: np.ndarray = factors.values[0]
        return query

    def gain(items: np.ndarray, own: int) -> float:
        position = items.tolist().index(own) if own in items else 10
        return 1 / math.log2(position + 2) if position < 10 else 0.0

    for point in result.points:
        found, both, alone = [], [], []
        for user in range(60):
            parts = (histories.training, histories.validation, histories.test)
            items = [part.item_idx[part.offsets[user] : part.offsets[user + 1]] for part in parts]
            own, seen = int(items[2][0]), np.concatenate(items[:2])
            factors = model.users(np.array([user]))
            candidates = index.search(factors, point.num_candidates, seen)
            found.append(own in candidates)
            order = np.argsort(-model.scores(factors, candidates[None])[0], kind="stable")
            both.append(gain(candidates[order], own))
            everything = index.search(factors, 40, seen)
            recall_scores = space.item_vectors[everything] @ query_of(factors)[: space.query_width]
            alone.append(gain(everything[np.argsort(-recall_scores, kind="stable")], own))
        assert point.candidate_recall == pytest.approx(np.mean(found))
        assert point.ndcg == pytest.approx(np.mean(both), abs=1e-6)
        assert point.gain == pytest.approx(np.mean(np.subtract(both, alone)), abs=1e-6)
        assert result.recall_ndcg == pytest.approx(np.mean(alone), abs=1e-6)
        error = np.std(np.subtract(both, alone)) / math.sqrt(60)
        assert point.gain_standard_error == pytest.approx(error, abs=1e-6)
    assert result.points[-1].share_of_full == pytest.approx(1.0)
    assert result.smallest_sufficient is not None


def test_a_batch_of_users_scores_as_each_user_alone() -> None:
    model = random_model(20, 3000).export()
    together = model.scores(model.users(np.arange(20)))
    alone = np.concatenate([model.scores(model.users(np.array([user]))) for user in range(20)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
