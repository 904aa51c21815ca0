"""EASE and iALS solve the least-squares problems that their papers state."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_recsys.config import IALSRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models import ease, ials
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.ials import Side
from ray_recsys.core.models.sparse_rows import to_csr
from ray_recsys.core.models.training_matrix import read_training_matrix
from ray_recsys.errors import InputError
from tests.factories import make_prepared_set
from tests.unit.test_training_matrix import rows_of

HERE = SerialExecutor()


def test_ease_of_two_items_by_hand() -> None:
    # X'X = [[2, 1], [1, 1]] with l2 = 1: item 0 adds 1 / (2 + 1) to item 1, and item 1 adds 1 / (1 + 1) to item 0
    weights = ease.item_weights(to_csr(rows_of([0, 1], [0]), 2), 1.0)
    assert np.allclose(weights, [[0, 1 / 3], [1 / 2, 0]])


@pytest.mark.parametrize("l2", [0.1, 5.0])
def test_ease_is_a_ridge_regression_of_each_item_on_the_others(l2: float, tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=50, num_items=30)
    model = ease.fit(prepared, parse_recipe({"model": {"name": "ease", "l2": l2}}, "test"), HERE)
    matrix = to_csr(read_training_matrix(prepared), 30).toarray().astype(np.float64)
    expected = np.zeros((50, 30))
    for item in range(30):
        others = np.delete(matrix, item, axis=1)
        weights = np.linalg.solve(others.T @ others + l2 * np.eye(29), others.T @ matrix[:, item])
        expected[:, item] = others @ weights
    assert np.allclose(model.scores(model.users(np.arange(50))), expected, atol=1e-5)


def test_ease_inverts_matrices_larger_than_a_block() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((600, 600))
    matrix = matrix @ matrix.T + 600 * np.eye(600)
    assert np.allclose(ease.inverse_in_place(matrix.copy()) @ matrix, np.eye(600))


def test_ease_of_a_catalogue_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_items=40)
    recipe = parse_recipe({"model": {"name": "ease", "max_memory_gb": 1e-6}}, "test")
    with pytest.raises(
        InputError, match=r"EASE of 40 items needs .* GB of memory; model\.max_memory_gb = 1e-06"
    ) as error:
        ease.fit(prepared, recipe, HERE)
    assert "item_knn" in error.value.remedy


def test_ials_of_width_1_by_hand() -> None:
    # item vectors 1 and 2, gram 5; a user of item 1: (4 + 0.5 x 5 + 0.1 x (1 + 0.5 x 2)) w = 2
    recipe = IALSRecipe(embedding_dim=1, unobserved_weight=0.5, l2=0.1, nu=1)
    side = Side.of(np.array([[1], [2]], np.float32), recipe)
    assert np.allclose(side.solve(rows_of([1], []))[:, 0], np.array([2 / (4 + 2.5 + 0.2), 0]))


def loss_of(users: torch.Tensor, items: torch.Tensor, matrix: torch.Tensor, recipe: IALSRecipe) -> torch.Tensor:
    """Returns the loss of the module's docstring, over all pairs."""
    scores = users @ items.T
    loss = (matrix * (scores - 1) ** 2).sum() + recipe.unobserved_weight * (scores**2).sum()
    for vectors, other, counts in ((users, items, matrix.sum(dim=1)), (items, users, matrix.sum(dim=0))):
        frequency = counts + recipe.unobserved_weight * len(other)
        loss = loss + recipe.l2 * (frequency**recipe.nu * (vectors**2).sum(dim=1)).sum()
    return loss


@pytest.mark.parametrize("nu", [0.0, 0.5, 1.0])
def test_each_side_of_ials_is_where_the_loss_has_no_slope(nu: float, tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    section = {"name": "ials", "embedding_dim": 6, "epochs": 2, "l2": 0.05, "unobserved_weight": 0.2, "nu": nu}
    recipe = parse_recipe({"model": section}, "test")
    assert isinstance(recipe.model, IALSRecipe)
    sparse = to_csr(read_training_matrix(prepared), 40)
    users, items = vectors_of(ials.fit(prepared, recipe, HERE))
    audiences = sparse.T.tocsr()
    by_item = SparseFactors(audiences.indptr.astype(np.int64), audiences.indices, audiences.data)
    solved_items = Side.of(users, recipe.model).solve(by_item)
    for side, vectors in ((0, (users, items)), (1, (users, solved_items))):
        tensors = [torch.tensor(v).double().requires_grad_() for v in vectors]
        loss = loss_of(tensors[0], tensors[1], torch.from_numpy(sparse.toarray()).double(), recipe.model)
        gradients = torch.autograd.grad(loss, tensors)
        assert float(gradients[side].abs().max()) < 1e-4
        assert float(gradients[1 - side].abs().max()) > 1e-2


def vectors_of(model: ials.IALS) -> tuple[Float32s, Float32s]:
    users = model.users(np.arange(model.num_users)).values
    return users, model.recall_space().item_vectors


def test_ials_is_a_function_of_the_seed(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    fitted = [
        vectors_of(ials.fit(prepared, parse_recipe({"seed": seed, "model": {"name": "ials"}}, "test"), HERE))[0]
        for seed in (1, 1, 2)
    ]
    assert np.array_equal(fitted[0], fitted[1])
    assert not np.array_equal(fitted[0], fitted[2])
