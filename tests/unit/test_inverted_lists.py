"""Inverted lists find what a search of everything finds, up to the recall that they were tuned to."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from ray_recsys.config import BundleRecipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.inverted_lists import build_lists, tune
from ray_recsys.core.models import neighbours
from ray_recsys.core.models.contract import DenseFactors, RecallSpace
from ray_recsys.core.models.inner_product import InnerProduct
from ray_recsys.core.models.neighbours import NONE, nearest_by_cosine
from ray_recsys.core.recommending.candidate_index import CandidateIndex
from ray_recsys.core.recommending.index_builder import build_index

ITEMS, WIDTH = 6000, 16


@pytest.fixture(scope="module")
def vectors() -> Float32s:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((60, WIDTH))
    return (centres[rng.integers(0, 60, ITEMS)] + 0.4 * rng.standard_normal((ITEMS, WIDTH))).astype(np.float32)


class _Model(InnerProduct):
    """Users like what is near an item."""


@pytest.fixture(scope="module")
def model(vectors: Float32s) -> _Model:
    return _Model(vectors[::20].copy(), vectors)


def test_lists_reach_the_recall_they_report_and_files_give_the_same_candidates(
    tmp_path: Path, vectors: Float32s, model: _Model
) -> None:
    recipe = BundleRecipe(max_exact_values=1000, tuned_candidates=50)
    index, report = build_index(model, RecallSpace(vectors), recipe)  # type: ignore[arg-type]
    assert report.method == "lists"
    assert 0 < (report.num_probes or 0) < (report.num_lists or 0) / 4
    index.write(tmp_path)
    opened, exact, shared = CandidateIndex.open(tmp_path), CandidateIndex(vectors), []
    for user in model.users(np.arange(100)).values:
        factors, excluded = DenseFactors(user[None]), np.arange(0, ITEMS, 7)
        found = opened.search(factors, 50, excluded)
        assert found.tolist() == index.search(factors, 50, excluded).tolist()
        assert len(found) == 50
        assert not np.isin(found, excluded).any()
        shared.append(np.isin(exact.search(factors, 50, excluded), found).mean())
    assert np.mean(shared) >= 0.95 - 0.02  # other users than those it was tuned on
    assert report.recall >= 0.95


def test_k_items_come_back_from_lists_when_nearly_everything_is_excluded(vectors: Float32s, model: _Model) -> None:
    index = build_index(model, RecallSpace(vectors), BundleRecipe(max_exact_values=1000))[0]  # type: ignore[arg-type]
    user, excluded = model.users(np.array([3])), np.arange(20, ITEMS)
    assert sorted(index.search(user, 200, excluded).tolist()) == list(range(20))


def test_vectors_without_structure_are_searched_exactly() -> None:
    noise = np.random.default_rng(1).standard_normal((3000, 48)).astype(np.float32)
    lists = build_lists(noise, faiss.METRIC_INNER_PRODUCT)
    query = np.random.default_rng(2).standard_normal((64, 48)).astype(np.float32)
    exact = faiss.knn(query, noise, 100, metric=faiss.METRIC_INNER_PRODUCT)[1]
    assert tune(lists, query, exact, 0.99) is None
    model, space = InnerProduct(query, noise), RecallSpace(noise)
    recipe = BundleRecipe(max_exact_values=1000, min_recall=0.99)
    assert build_index(model, space, recipe)[1].method == "exact"  # type: ignore[arg-type]


def test_neighbours_from_lists_are_the_nearest_and_never_the_item_itself(
    vectors: Float32s, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = nearest_by_cosine(vectors, 10, SerialExecutor())
    monkeypatch.setattr(neighbours, "MAX_EXACT_VALUES", 1000)
    monkeypatch.setattr(neighbours, "_ROWS_AT_ONCE", 1024)
    found = nearest_by_cosine(vectors, 10, SerialExecutor())
    assert not (found.item_idx == np.arange(ITEMS)[:, None]).any()
    shared = [np.isin(a, b).mean() for a, b in zip(exact.item_idx, found.item_idx, strict=True)]
    assert np.mean(shared) >= 0.93
    assert found.recall >= 0.95
    assert exact.recall == 1.0
    filled = found.item_idx != NONE
    assert (np.diff(found.scores, axis=1)[filled[:, 1:]] <= 0).all()
