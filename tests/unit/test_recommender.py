from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models import neighbours
from ray_recsys.core.models.contract import DenseFactors
from ray_recsys.core.models.neighbours import nearest_by_cosine
from ray_recsys.core.models.popularity import Popularity
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.bundle_writer import BundleModels, build_bundle
from ray_recsys.core.recommending.candidate_index import CandidateIndex, RankedCatalogue
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
def test_recall_is_exact_and_ascending_with_ties_by_index(seed: int, num_items: int, num_candidates: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (num_items, 3)).astype(np.float32)  # few values: many ties
    user = rng.integers(-1, 2, 3).astype(np.float32)
    excluded = np.flatnonzero(rng.random(num_items) < 0.3)
    scores = vectors @ user
    order = [i for i in np.lexsort((np.arange(num_items), -scores)) if i not in set(excluded.tolist())]
    found = CandidateIndex(vectors).search(DenseFactors(user[None]), num_candidates, excluded)
    assert found.tolist() == sorted(order[:num_candidates])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), num_items=st.integers(1, 60), num_candidates=st.integers(1, 80))
def test_a_ranked_catalogue_is_exact_and_ascending_with_ties_by_index(
    seed: int, num_items: int, num_candidates: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, num_items).astype(np.float32)
    excluded = np.flatnonzero(rng.random(num_items) < 0.3)
    order = [i for i in np.lexsort((np.arange(num_items), -scores)) if i not in set(excluded.tolist())]
    model = Popularity(1, scores)
    found = RankedCatalogue(model).search(model.users(np.array([0])), num_candidates, excluded)
    assert found.tolist() == sorted(order[:num_candidates])


def test_with_all_items_as_candidates_the_best_of_the_catalogue_come_back(recommender: Recommender) -> None:
    model = recommender.bundle.load_model()
    scores = model.scores(model.users(np.arange(NUM_USERS)))
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


def test_recall_and_rerank_may_be_different_models(recommender: Recommender, tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "prepared")
    rerank = recommender.bundle.load_model()
    recall = Popularity(NUM_USERS, np.arange(NUM_ITEMS, 0, -1).astype(np.float32))
    models = BundleModels(rerank, "neumf", recall, "popularity", recommender.bundle.neighbours)
    recipe = recommender.bundle.manifest.recipe
    build_bundle(tmp_path / "bundle", models=models, prepared=prepared, recipe=recipe, metrics={})
    two_models = Recommender(Bundle.open(tmp_path / "bundle"))
    assert two_models.bundle.manifest.recall_model == "popularity"
    for user_idx in range(NUM_USERS):
        query = Query(user_idx=user_idx, k=5, num_candidates=8)
        unseen = [i for i in range(NUM_ITEMS) if i not in set(two_models.bundle.seen.of(user_idx).tolist())]
        candidates = two_models.recall(query)
        assert candidates.item_idx.tolist() == unseen[:8]
        scores = rerank.scores(rerank.users(np.array([user_idx])), candidates.item_idx[None])[0]
        expected = candidates.item_idx[np.lexsort((candidates.item_idx, -scores))[:5]]
        assert two_models.rerank(query, candidates).item_idx.tolist() == expected.tolist()


@pytest.mark.parametrize("max_block", [30 * 7, 1 << 25])
def test_neighbours_are_the_nearest_by_cosine(monkeypatch: pytest.MonkeyPatch, max_block: int) -> None:
    monkeypatch.setattr(neighbours, "MAX_BLOCK_COSINES", max_block)
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    found = nearest_by_cosine(embeddings, 5, SerialExecutor())
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    for item in range(30):
        cosines = unit @ unit[item]
        order = [i for i in np.argsort(-cosines) if i != item][:5]
        assert found.item_idx[item].tolist() == order
        np.testing.assert_allclose(found.scores[item], cosines[order], atol=1e-6)


def test_a_catalogue_of_one_item_has_no_neighbours() -> None:
    assert nearest_by_cosine(np.ones((1, 4), np.float32), 5, SerialExecutor()).item_idx.shape == (1, 0)


def test_queries_that_come_together_get_the_answers_that_they_get_alone(recommender: Recommender) -> None:
    history = np.array([3, 5], np.int32)
    queries = [
        Query(user_idx=4),
        Query(),
        Query(user_idx=9, k=3, num_candidates=5, exclude_seen=False),
        Query(history=history),
        Query(user_idx=2, allowed=np.arange(0, 40, 3, dtype=np.int32)),
        Query(user_idx=7, history=history, k=40, num_candidates=40),
    ]
    together = recommender.reranker.rerank_all(queries, recommender.recaller.recall_all(queries))
    for query, one in zip(queries, together, strict=True):
        alone = recommender.recommend(query)
        assert one.source == alone.source
        assert one.item_idx.tolist() == alone.item_idx.tolist()
        np.testing.assert_allclose(one.scores, alone.scores, rtol=1e-4, atol=1e-5)
