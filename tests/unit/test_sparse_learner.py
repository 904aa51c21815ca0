"""The sparse step against dense Adam, against Adam by hand for rows that are touched now and then, and on workers."""

from typing import Any

import numpy as np
import pytest
import torch

from ray_recsys.config import MFRecipe, TrainRecipe
from ray_recsys.core.models.contract import GradientModel
from ray_recsys.core.models.mf import MF
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.learner import DenseLearner, SparseLearner
from ray_recsys.core.training.row_adam import RowAdam
from ray_recsys.core.training.rows import RowFinder
from tests.unit.test_neumf import ITEMS, USERS, make

RATE = 0.01


def batch_of(
    users: int, items: int, num_positives: int, seed: int, *, is_whole: bool = False, recent: int = 0
) -> Batch:
    """Returns random pairs; with `is_whole` every user and item occurs, among the recent items too."""
    rng = np.random.default_rng(seed)
    user_idx, item_idx = rng.integers(0, users, num_positives), rng.integers(0, items, (num_positives, 3))
    recents = rng.integers(-1, items, (num_positives, recent)) if recent else None
    if is_whole:
        user_idx[:users], item_idx.reshape(-1)[:items] = np.arange(users), np.arange(items)
        if recents is not None:
            recents.reshape(-1)[:items] = np.arange(items)
    weight = rng.uniform(0.5, 2, num_positives).astype(np.float32)
    recent_idx = None if recents is None else -np.sort(-recents, axis=1).astype(np.int32)  # -1 comes last
    return Batch(user_idx, item_idx.astype(np.int32), weight, None, num_positives, recent_idx)


def models_of(name: str, train: TrainRecipe) -> tuple[GradientModel, GradientModel]:
    if name == "mf":
        recipe = MFRecipe(embedding_dim=4)
        first, second = (MF(USERS, ITEMS, recipe, train, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        return first, second
    keys: dict[str, Any] = {"recent_items": 4} if name == "recent" else {"gmf_loss_weight": 0.3}
    return make(train, **keys), make(train, **keys)


@pytest.mark.parametrize("name", ["mf", "neumf", "recent"])
def test_steps_that_touch_every_row_are_those_of_dense_adam(name: str) -> None:
    train = TrainRecipe(l2=0.1, optimizer="sparse_adam")
    ours, dense = models_of(name, train)
    sparse, reference = SparseLearner(ours, train, range(USERS)), DenseLearner(dense, train, lambda module: module)
    for step in range(8):
        batch = batch_of(USERS, ITEMS, 12, step, is_whole=True, recent=4 if name == "recent" else 0)
        torch.testing.assert_close(sparse.step(batch, RATE), reference.step(batch, RATE))
    expected = dense.state_dict()
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5, msg=key)


def test_rows_that_no_batch_names_keep_every_bit() -> None:
    train = TrainRecipe(l2=0.1)
    model = make(train, recent_items=4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner = SparseLearner(model, train, range(USERS))
    learner.step(batch_of(3, 5, 6, 0, recent=4), RATE)
    learner.step(batch_of(3, 5, 6, 1, recent=4), RATE)
    after = model.state_dict()
    for table, first in {"user_gmf": 3, "user_bias": 3, "item_mlp": 5, "item_bias": 5, "recent.items": 5}.items():
        assert torch.equal(before[table][first:], after[table][first:]), table
        assert not torch.equal(before[table][:first], after[table][:first]), table
    assert learner.user_optimizer.num_steps[3:].sum() == 0
    assert learner.user_optimizer.means[3:].abs().sum() == 0


def test_a_row_counts_its_own_steps() -> None:
    rng = np.random.default_rng(3)
    tables = [torch.zeros(4, 2), torch.zeros(4)]
    optimizer = RowAdam(tables)
    weights, means, squares, steps = np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(4)
    for rows in ([0, 2], [2], [], [3, 0], [2, 3]):
        gradients = rng.normal(size=(len(rows), 3)).astype(np.float32)
        for row, gradient in zip(rows, gradients, strict=True):
            steps[row] += 1
            means[row] = 0.9 * means[row] + 0.1 * gradient
            squares[row] = 0.999 * squares[row] + 0.001 * gradient**2
            unbiased = means[row] / (1 - 0.9 ** steps[row]), squares[row] / (1 - 0.999 ** steps[row])
            weights[row] -= RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        optimizer.update(torch.tensor(rows, dtype=torch.int64), torch.from_numpy(gradients), RATE)
    np.testing.assert_allclose(tables[0].numpy(), weights[:, :2], rtol=1e-5)
    np.testing.assert_allclose(tables[1].numpy(), weights[:, 2], rtol=1e-5)
    assert optimizer.num_steps.tolist() == [2, 0, 3, 2]


@pytest.mark.parametrize("shape", [(0,), (1,), (50,), (20, 5), (0, 4)])
def test_distinct_rows_rebuild_the_indices(shape: tuple[int, ...]) -> None:
    finder, rng = RowFinder(30), np.random.default_rng(1)
    for _ in range(3):  # what the last call left behind does not matter
        idx = rng.integers(0, 30, shape).astype(np.int32)
        rows, numbers = finder(idx)
        assert sorted(rows) == sorted(set(idx.reshape(-1).tolist()))
        assert np.array_equal(rows[numbers].reshape(shape), idx)
