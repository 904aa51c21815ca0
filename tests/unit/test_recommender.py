from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.core.models.neighbours import find_neighbours
from ray_recsys.core.models.neumf_scorer import NeuMFScorer
from ray_recsys.core.recommending.recall import Recall
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

NUM_USERS, NUM_ITEMS = 60, 40


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    directory: Path = tmp_path_factory.mktemp("recommender")
    publish_bundle(directory / "registry", make_prepared_set(directory / "prepared"))
    return Recommender(Registry(directory / "registry").open())


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), num_items=st.integers(1, 60), num_candidates=st.integers(1, 80))
def test_recall_is_exact_with_ties_by_index(seed: int, num_items: int, num_candidates: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (num_items, 3)).astype(np.float32)  # few values: many ties
    user = rng.integers(-1, 2, 3).astype(np.float32)
    excluded = np.flatnonzero(rng.random(num_items) < 0.3)
    scores = vectors @ user
    order = [i for i in np.lexsort((np.arange(num_items), -scores)) if i not in set(excluded.tolist())]
    found = Recall.build(vectors).search(user, num_candidates, excluded)
    assert found.tolist() == order[:num_candidates]


def test_with_all_items_as_candidates_the_best_of_the_catalogue_come_back(recommender: Recommender) -> None:
    scores = NeuMFScorer(recommender.bundle.load_model()).score_catalogue(np.arange(NUM_USERS))
    for user_idx in range(NUM_USERS):
        seen = set(recommender.bundle.seen.of(user_idx).tolist())
        order = [i for i in np.lexsort((np.arange(NUM_ITEMS), -scores[user_idx])) if i not in seen]
        answer = recommender.recommend(Query(user_idx=user_idx, k=10, num_candidates=10_000))
        assert answer.source == "two-stage"
        assert answer.item_idx.tolist() == order[:10]
        np.testing.assert_allclose(answer.scores, scores[user_idx, order[:10]], atol=1e-5)


def test_k_above_what_is_left_gives_what_is_left(recommender: Recommender) -> None:
    everything_but_two = np.arange(2, NUM_ITEMS, dtype=np.int32)
    query = Query(user_idx=3, k=10, exclude_seen=False, exclude_items=everything_but_two)
    assert sorted(recommender.recommend(query).item_idx.tolist()) == [0, 1]
    nothing = Query(user_idx=3, exclude_items=np.arange(NUM_ITEMS, dtype=np.int32))
    assert recommender.recommend(nothing).item_idx.tolist() == []


def test_nobody_gets_what_is_popular_without_what_is_excluded(recommender: Recommender) -> None:
    answer = recommender.recommend(Query(k=3, exclude_items=np.array([0, 2], np.int32)))
    assert (answer.source, answer.item_idx.tolist()) == ("popular", [1, 3, 4])
    assert answer.scores.tolist() == recommender.bundle.catalogue.counts[[1, 3, 4]].tolist()


def test_a_history_is_folded_in_the_same_each_time_and_kept_out(recommender: Recommender) -> None:
    history = np.array([5, 9, 1], np.int32)
    first, second = (recommender.recommend(Query(history=history, num_candidates=100)) for _ in range(2))
    assert first.source == "fold-in"
    assert not set(history.tolist()) & set(first.item_idx.tolist())
    np.testing.assert_array_equal(first.item_idx, second.item_idx)
    np.testing.assert_array_equal(first.scores, second.scores)
    with_history = recommender.recommend(Query(user_idx=3, history=history))
    assert with_history.source == "fold-in"
    assert not set(recommender.bundle.seen.of(3).tolist()) & set(with_history.item_idx.tolist())


def test_a_folded_in_user_scores_their_history_higher_than_the_mean_user_does(recommender: Recommender) -> None:
    history = np.array([30, 35, 39], np.int32)
    folded = recommender._fold_in.row(history)
    others = np.setdiff1d(np.arange(NUM_ITEMS), history).astype(np.int32)
    mean = recommender._fold_in._mean
    model = recommender.bundle.load_model()
    with torch.no_grad():
        for name, part in zip(("user_gmf", "user_mlp"), np.split(mean[:-1], 2), strict=True):
            getattr(model, name)[0] = torch.from_numpy(part.copy())
        model.user_bias[0] = float(mean[-1])
    of_mean = NeuMFScorer(model).score_catalogue(np.array([0]))[0]

    def margin(scores_history: np.ndarray, scores_others: np.ndarray) -> float:
        return float(scores_history.mean() - scores_others.mean())

    rerank = recommender._rerank
    folded_margin = margin(rerank.score(folded, history), rerank.score(folded, others))
    assert folded_margin > margin(of_mean[history], of_mean[others])


def test_neighbours_are_the_nearest_by_cosine() -> None:
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    found = find_neighbours(embeddings, 5)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for item in range(30):
        cosines = unit @ unit[item]
        order = [i for i in np.argsort(-cosines) if i != item][:5]
        assert found.item_idx[item].tolist() == order
        np.testing.assert_allclose(found.scores[item], cosines[order], atol=1e-6)


def test_a_catalogue_of_one_item_has_no_neighbours() -> None:
    assert find_neighbours(np.ones((1, 4), np.float32), 5).item_idx.shape == (1, 0)
