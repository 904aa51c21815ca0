"""Item- and user-based CF: similarities by hand and by brute force, and scores that add them up."""

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ray_recsys.config import ItemKNNRecipe, SimilarityRecipe, UserKNNRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Float32s, Float64s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models import item_knn, user_knn
from ray_recsys.core.models.item_knn import ItemKNN
from ray_recsys.core.models.similarity import find_similar
from ray_recsys.core.models.sparse_rows import to_csr
from ray_recsys.core.models.training_matrix import read_training_matrix
from ray_recsys.core.models.user_knn import UserKNN
from tests.factories import make_prepared_set
from tests.unit.test_training_matrix import rows_of

HERE = SerialExecutor()
# Users 0: items 0 1, 1: items 1 0 2, 2: items 3 0. Items 0: users 0 1 2, 1: users 0 1, 2: user 1, 3: user 2.
HISTORIES = rows_of([0, 1], [1, 0, 2], [3, 0])
ITEMS = to_csr(HISTORIES, 4).T.tocsr()


def dense_similarity(queries: Float64s, rows: Float64s, recipe: SimilarityRecipe) -> Float32s:
    """Returns all similarities by the formula, with 0 on the diagonal."""
    lengths = (queries**2).sum(axis=1)[:, None] ** (1 - recipe.alpha) * (rows**2).sum(axis=1) ** recipe.alpha
    products = queries @ rows.T
    similarity = np.divide(products, lengths + recipe.shrinkage, out=np.zeros_like(products), where=products > 0)
    if recipe.significance:
        similarity *= np.minimum((queries > 0).astype(float) @ (rows > 0).T / recipe.significance, 1)
    np.fill_diagonal(similarity, 0)
    rounded: Float32s = similarity.astype(np.float32)
    return rounded


def best_of_each(similarity: Float32s, num_kept: int) -> Float32s:
    """Returns the similarities with all but each row's best set to 0; ties by index."""
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :num_kept]
    best = np.zeros_like(similarity)
    np.put_along_axis(best, order, np.take_along_axis(similarity, order, axis=1), axis=1)
    return best


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, [2 / 6**0.5, 1 / 3**0.5, 1 / 3**0.5]),
        ({"shrinkage": 1}, [2 / (6**0.5 + 1), 1 / (3**0.5 + 1), 1 / (3**0.5 + 1)]),
        ({"alpha": 1}, [2 / 2, 1 / 1, 1 / 1]),
        ({"alpha": 0}, [2 / 3, 1 / 3, 1 / 3]),
        ({"significance": 4}, [2 / 6**0.5 / 2, 1 / 3**0.5 / 4, 1 / 3**0.5 / 4]),
        ({"num_neighbours": 2}, [2 / 6**0.5, 1 / 3**0.5]),
    ],
)
def test_similarities_of_an_item_by_hand(recipe: dict[str, float], expected: list[float]) -> None:
    similar = find_similar(ITEMS, SimilarityRecipe.model_validate(recipe), HERE).take(slice(0, 1))
    assert similar.idx.tolist() == [1, 2, 3][: len(expected)]
    assert np.allclose(similar.weights, expected)


similarity_recipes = st.builds(
    SimilarityRecipe,
    num_neighbours=st.integers(1, 6),
    alpha=st.sampled_from([0, 0.3, 0.5, 1]),
    shrinkage=st.sampled_from([0, 0.5, 10]),
    significance=st.integers(0, 3),
)
matrices = arrays(np.float64, (7, 5), elements=st.sampled_from([0, 0, 0.5, 1, 1]))


@given(matrices, matrices, similarity_recipes, st.integers(1, 3000))
@settings(deadline=None)
def test_similarities_are_those_of_brute_force_for_any_blocks(
    queries: Float64s, rows: Float64s, recipe: SimilarityRecipe, block_bytes: int
) -> None:
    sparse_queries, sparse_rows = (sp.csr_array(values.astype(np.float32)) for values in (queries, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_recsys.core.models.similarity.BLOCK_BYTES", block_bytes)
        found = find_similar(sparse_rows, recipe, HERE, queries=sparse_queries)
    expected = best_of_each(dense_similarity(queries, rows, recipe), recipe.num_neighbours)
    assert np.array_equal(to_csr(found, 7).toarray(), expected)
    for row in range(7):
        one = found.take(slice(row, row + 1))
        weights, idx = one.weights, one.idx
        assert (np.diff(weights) <= 0).all()
        assert (np.diff(idx)[np.diff(weights) == 0] > 0).all()


@given(matrices, similarity_recipes, st.floats(0, 1), st.integers(1, 3000))
@settings(deadline=None, max_examples=50)
def test_blocks_do_not_show_for_any_alpha(
    rows: Float64s, recipe: SimilarityRecipe, alpha: float, block_bytes: int
) -> None:
    sparse, recipe = sp.csr_array(rows.astype(np.float32)), recipe.model_copy(update={"alpha": alpha})
    expected = find_similar(sparse, recipe, HERE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_recsys.core.models.similarity.BLOCK_BYTES", block_bytes)
        found = find_similar(sparse, recipe, HERE)
    assert np.array_equal(found.offsets, expected.offsets)
    assert np.array_equal(found.idx, expected.idx)
    assert np.array_equal(found.weights, expected.weights)


def test_item_knn_by_hand() -> None:
    similar = find_similar(ITEMS, SimilarityRecipe(), HERE)
    model = ItemKNN(HISTORIES, similar, ItemKNNRecipe(recency_half_life=1))
    # item 2 has the user 1 in common with the items 0 and 1; item 3 the user 2 with item 0
    to_2, to_3 = (1 / 3**0.5, 1 / 2**0.5), 1 / 3**0.5
    assert np.allclose(model.scores(model.users(np.array([0])), np.array([[2, 3]])), [[sum(to_2), to_3]])
    folded = model.fold_in(np.array([0, 1], np.int32))
    assert np.allclose(model.scores(folded, np.array([[2, 3]])), [[to_2[0] / 2 + to_2[1], to_3 / 2]])


def test_neighbours_of_an_item_are_filled_with_the_first_that_are_missing() -> None:
    model = ItemKNN(HISTORIES, find_similar(ITEMS, SimilarityRecipe(), HERE), ItemKNNRecipe())
    neighbours = model.neighbours(3, HERE)
    assert neighbours.item_idx.tolist() == [[1, 2, 3], [0, 2, 3], [1, 0, 3], [0, 1, 2]]
    assert np.allclose(neighbours.scores[3], [1 / 3**0.5, 0, 0])


def test_user_knn_by_hand() -> None:
    recipe = UserKNNRecipe(neighbour_half_life=1)
    similar = find_similar(to_csr(HISTORIES, 4), recipe, HERE)
    model = UserKNN(similar, HISTORIES, 4, recipe)
    # user 0 shares two items with user 1, whose last is 2, and one with user 2, whose last but one is 3
    expected = [2 / 6**0.5, 1 / 2 / 2]
    assert np.allclose(model.scores(model.users(np.array([0])), np.array([[2, 3]])), [expected])


@pytest.mark.parametrize("seed", range(3))
def test_item_knn_is_the_dense_product(seed: int, tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=30, num_items=20, seed=seed)
    recipe = parse_recipe({"model": {"name": "item_knn", "num_neighbours": 4, "shrinkage": 1}}, "test")
    model = item_knn.fit(prepared, recipe, HERE)
    matrix = to_csr(read_training_matrix(prepared), 20).toarray().astype(np.float64)
    assert isinstance(recipe.model, ItemKNNRecipe)
    similarity = best_of_each(dense_similarity(matrix.T, matrix.T, recipe.model), 4)
    assert np.allclose(model.scores(model.users(np.arange(30))), matrix @ similarity.T, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_user_knn_is_the_dense_product(seed: int, tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=30, num_items=20, seed=seed)
    recipe = parse_recipe({"model": {"name": "user_knn", "num_neighbours": 4, "shrinkage": 1}}, "test")
    model = user_knn.fit(prepared, recipe, HERE)
    matrix = to_csr(read_training_matrix(prepared), 20).toarray().astype(np.float64)
    assert isinstance(recipe.model, UserKNNRecipe)
    similarity = best_of_each(dense_similarity(matrix, matrix, recipe.model), 4)
    assert np.allclose(model.scores(model.users(np.arange(30))), similarity @ matrix, atol=1e-6)


def test_folded_in_history_finds_its_own_user_and_that_users_neighbours(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=30)
    recipe = {"name": "user_knn", "num_neighbours": 30, "alpha": 0.5, "recency_half_life": 4}
    model = user_knn.fit(prepared, parse_recipe({"model": recipe}, "test"), HERE)
    matrix = read_training_matrix(prepared)
    for user in range(30):
        folded = model.fold_in(matrix.take(slice(user, user + 1)).idx)
        trained = model.users(np.array([user]))
        is_other = folded.idx != user
        assert is_other.sum() == len(folded.idx) - 1
        assert np.array_equal(folded.idx[is_other], trained.idx)
        assert np.array_equal(folded.weights[is_other], trained.weights)
