"""LightGCN against dense matrices: propagation, its gradient, the loss, shards, workers, fold-in, memory blocks."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_recsys.config import LightGCNRecipe, TrainRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.models import propagation
from ray_recsys.core.models.contract import DenseFactors, SparseFactors, TensorBatch
from ray_recsys.core.models.lightgcn import LightGCN, build
from ray_recsys.core.models.propagation import Graph
from ray_recsys.core.training.data_parallel import data_parallel
from tests.factories import make_prepared_set
from tests.unit.test_data_parallel import run_group

HISTORIES = [[0, 3, 4], [1], [0, 1, 2, 3, 5], [4, 0], [2, 5]]
USERS, ITEMS, D, LAYERS = len(HISTORIES), 6, 5, 3
B, N = 7, 2


def graph() -> Graph:
    """Returns the graph of five users and six items."""
    offsets = np.cumsum([0, *(len(items) for items in HISTORIES)])
    idx = np.concatenate([np.array(items, np.int32) for items in HISTORIES])
    return Graph.of(SparseFactors(offsets, idx, np.ones(len(idx), np.float32)), ITEMS)


def dense_operator(num_layers: int = LAYERS) -> Tensor:
    """Returns the mean of the powers 0..K of the normalised adjacency, [U + I, U + I]."""
    adjacency = torch.zeros(USERS + ITEMS, USERS + ITEMS, dtype=torch.float64)
    for user, items in enumerate(HISTORIES):
        for item in items:
            adjacency[user, USERS + item] = adjacency[USERS + item, user] = 1
    degrees = adjacency.sum(dim=1)
    adjacency /= (degrees[:, None] * degrees[None]).sqrt()
    return torch.stack([torch.matrix_power(adjacency, k) for k in range(num_layers + 1)]).mean(dim=0)


def make(train: TrainRecipe | None = None) -> LightGCN:
    recipe = LightGCNRecipe(embedding_dim=D, num_layers=LAYERS, init_std=0.7)
    return LightGCN(graph(), recipe, train, generator=torch.Generator().manual_seed(1))


def batch(part: slice = slice(0, B)) -> TensorBatch:
    """Returns a part of a batch of 7 positives with 2 negatives each."""
    rng = torch.Generator().manual_seed(0)
    user_idx = torch.randint(USERS, (B,), generator=rng)
    item_idx = torch.randint(ITEMS, (B, 1 + N), generator=rng)
    weight = torch.rand(B, generator=rng) + 0.5
    return TensorBatch(user_idx[part], item_idx[part], weight[part], None, B)


def gradients(shards: list[slice]) -> dict[str, Tensor]:
    model = make(TrainRecipe(l2=0.1))
    for part in shards:
        torch.autograd.backward(model(batch(part)))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def textbook_loss(rows: Tensor, l2: float) -> Tensor:
    """Returns the loss of the whole batch, positive by positive, from layer-0 rows of users and items."""
    final, data, total = dense_operator() @ rows, batch(), torch.zeros((), dtype=torch.float64)
    for user, items, weight in zip(data.user_idx.tolist(), data.item_idx.tolist(), data.weight.double(), strict=True):
        positive, *negatives = items
        score = {item: final[user] @ final[USERS + item] for item in items}
        for negative in negatives:
            total = total - weight * torch.log(torch.sigmoid(score[positive] - score[negative])) / N
            total = total + l2 / 2 * rows[USERS + negative].square().sum() / N
        total = total + l2 / 2 * (rows[user].square().sum() + rows[USERS + positive].square().sum())
    return total / B


def layer_0(model: LightGCN) -> Tensor:
    return torch.cat([model.user_vectors, model.item_vectors]).detach().double().requires_grad_()


def test_loss_and_gradient_equal_the_textbook() -> None:
    model = make(TrainRecipe(l2=0.1))
    rows = layer_0(model)
    expected = textbook_loss(rows, 0.1)
    loss = model(batch())
    torch.autograd.backward([loss, expected])
    torch.testing.assert_close(loss.double(), expected)
    assert rows.grad is not None
    assert model.user_vectors.grad is not None
    assert model.item_vectors.grad is not None
    torch.testing.assert_close(model.user_vectors.grad.double(), rows.grad[:USERS], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.item_vectors.grad.double(), rows.grad[USERS:], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bounds", [[0, 4, B], [0, 1, 6, B], [0, 0, B]])
def test_gradients_of_shards_add_up(bounds: list[int]) -> None:
    whole = gradients([slice(0, B)])
    summed = gradients([slice(a, b) for a, b in itertools.pairwise(bounds)])
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, msg=name)


def _save_gradients(rank: int, size: int, directory: Path) -> None:
    shards = {2: [slice(0, 5), slice(5, B)], 3: [slice(0, 0), slice(0, 6), slice(6, B)]}
    model = make(TrainRecipe(l2=0.1))
    wrapped = data_parallel(model)
    torch.autograd.backward(wrapped(batch(shards[size][rank])))
    torch.save({name: p.grad for name, p in model.named_parameters()}, directory / f"gradients-{rank}.pt")


@pytest.mark.parametrize("size", [2, 3])  # five columns: uneven shares
def test_workers_that_propagate_a_share_of_the_columns_get_the_whole_gradient(tmp_path: Path, size: int) -> None:
    expected = gradients([slice(0, B)])
    run_group(_save_gradients, size, tmp_path)
    for rank in range(size):
        found: dict[str, Any] = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=f"{name} on worker {rank}")


def test_export_equals_the_dense_operator_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    final = (dense_operator() @ layer_0(model)).detach().numpy()
    expected = final[:USERS] @ final[USERS:].T
    for values in (1 << 26, 2 * (USERS + ITEMS), 1):
        monkeypatch.setattr(propagation, "MAX_BLOCK_VALUES", values)
        trained = model.export()
        np.testing.assert_allclose(trained.scores(trained.users(np.arange(USERS))), expected, rtol=1e-5, atol=1e-6)


def test_folding_in_the_training_history_gives_the_trained_user_and_a_new_item_changes_it() -> None:
    trained = make().export()
    for user, items in enumerate(HISTORIES):
        of_user = trained.users(np.array([user]))
        folded = trained.fold_in(np.array(items[::-1] + items[:1], np.int32), user)
        assert isinstance(of_user, DenseFactors)
        assert isinstance(folded, DenseFactors)
        np.testing.assert_allclose(folded.values, of_user.values, rtol=1e-5, atol=1e-6)
    grown = trained.fold_in(np.array([*HISTORIES[1], 4], np.int32), 1)
    stranger = trained.fold_in(np.array(HISTORIES[1], np.int32))
    assert isinstance(grown, DenseFactors)
    assert isinstance(stranger, DenseFactors)
    by_hand = make().user_vectors.detach().numpy() / (LAYERS + 1)
    layers = [(dense_operator(0) @ layer_0(make())).detach()]
    step = dense_operator(1) * 2 - dense_operator(0)
    for _ in range(LAYERS - 1):
        layers.append(step @ layers[-1])
    degrees = np.array([3, 2, 2, 2, 2, 2])
    messages = torch.stack(layers).sum(dim=0).numpy()[USERS:] / (LAYERS + 1) / np.sqrt(degrees)[:, None]
    np.testing.assert_allclose(grown.values[0], by_hand[1] + (messages[1] + messages[4]) / np.sqrt(2), rtol=1e-5)
    np.testing.assert_allclose(stranger.values[0], by_hand.mean(axis=0) + messages[1], rtol=1e-5)


def test_graph_is_of_the_training_interactions_alone(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    recipe = parse_recipe({"model": {"name": "lightgcn", "embedding_dim": 4}}, "test")
    parts = [prepared.read_partition(number).training for number in range(len(prepared.manifest.partitions))]
    expected = np.bincount(np.concatenate([part.item_idx for part in parts]), minlength=prepared.manifest.num_items)
    found = build(prepared, recipe)._graph
    assert len(found.of_users.idx) == expected.sum()
    assert found.item_degrees.tolist() == np.maximum(expected, 1).tolist()


def test_ratings_are_refused() -> None:
    with pytest.raises(Exception, match=r"train\.objective = 'explicit'.*lightgcn"):
        parse_recipe(
            {"model": {"name": "lightgcn"}, "train": {"objective": "explicit"}, "input": {"rating_column": "r"}}, "test"
        )
