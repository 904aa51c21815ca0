"""MF and GMF: logits and loss by hand, gradients of shards and workers, what the trained model keeps, fold-in."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_recsys.config import GMFRecipe, MFRecipe, MLPRecipe, TrainRecipe
from ray_recsys.core.models.contract import DenseFactors, TensorBatch
from ray_recsys.core.models.mf import MF
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.training.data_parallel import data_parallel
from tests.unit.test_data_parallel import run_group

USERS, ITEMS, D = 7, 11, 4
B, C = 8, 3
SHARDS = {2: [slice(0, 3), slice(3, B)], 3: [slice(0, 0), slice(0, 7), slice(7, B)]}


def make(name: str, train: TrainRecipe | None = None) -> MF:
    """Returns a small model whose biases are not zero."""
    recipe = MFRecipe(embedding_dim=D, init_std=0.5) if name == "mf" else GMFRecipe(embedding_dim=D, init_std=0.5)
    model = MF(USERS, ITEMS, recipe, train, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for bias in (model.user_bias, model.item_bias, model.global_bias):
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(2)))
    return model


def batch(*, explicit: bool = False, part: slice = slice(0, B)) -> TensorBatch:
    rng = torch.Generator().manual_seed(0)
    user_idx = torch.randint(USERS, (B,), generator=rng)
    item_idx = torch.randint(ITEMS, (B, C), generator=rng)
    weight, rating = torch.rand(B, generator=rng) + 0.5, torch.rand(B, generator=rng) * 5
    items = item_idx[part, :1] if explicit else item_idx[part]
    return TensorBatch(user_idx[part], items, weight[part], rating[part] if explicit else None, B)


def logit_by_hand(model: MF, user: int, item: int) -> float:
    weights = [1.0] * D if model.output is None else model.output.tolist()
    products = zip(weights, model.user_vectors[user].tolist(), model.item_vectors[item].tolist(), strict=True)
    bias = (model.user_bias[user] + model.item_bias[item] + model.global_bias).item()
    return math.fsum(h * p * q for h, p, q in products) + bias


def norm_by_hand(model: MF, user: int, item: int) -> float:
    return math.fsum(value**2 for value in model.user_vectors[user].tolist() + model.item_vectors[item].tolist())


@pytest.mark.parametrize("name", ["mf", "gmf"])
@pytest.mark.parametrize("explicit", [False, True])
def test_loss_equals_the_formula(name: str, explicit: bool) -> None:
    train = TrainRecipe(objective="explicit" if explicit else "implicit", l2=0.1)
    model, data = make(name, train), batch(explicit=explicit)
    total = 0.0
    for row, user in enumerate(data.user_idx.tolist()):
        weight = float(data.weight[row])
        for column, item in enumerate(data.item_idx[row].tolist()):
            logit = logit_by_hand(model, user, item)
            if data.rating is not None:
                total += weight * (logit - float(data.rating[row])) ** 2
            else:
                total += weight * math.log1p(math.exp(-logit)) if column == 0 else math.log1p(math.exp(logit))
            total += 0.1 / 2 * norm_by_hand(model, user, item)
    assert model(data).item() == pytest.approx(total / data.item_idx.numel(), rel=1e-5)


def gradients(name: str, shards: list[slice]) -> dict[str, Tensor]:
    model = make(name, TrainRecipe(l2=0.1))
    for part in shards:
        torch.autograd.backward(model(batch(part=part)))
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["mf", "gmf"])
@pytest.mark.parametrize("bounds", [[0, 4, B], [0, 1, 6, B], [0, 0, B], [0, 5, 5, B]])
def test_gradients_of_shards_add_up(name: str, bounds: list[int]) -> None:
    whole = gradients(name, [slice(0, B)])
    summed = gradients(name, [slice(a, b) for a, b in itertools.pairwise(bounds)])
    assert whole.keys() == summed.keys() == dict(make(name).named_parameters()).keys()
    for key, gradient in whole.items():
        torch.testing.assert_close(summed[key], gradient, msg=key)


def make_mlp() -> NeuMF:
    recipe = MLPRecipe(embedding_dim=D, mlp_layers=(5, 3), init_std=0.5)
    return NeuMF(USERS, ITEMS, recipe, TrainRecipe(l2=0.1), generator=torch.Generator().manual_seed(1))


def _save_gradients(rank: int, size: int, directory: Path) -> None:
    for name in ("gmf", "mlp"):
        model = make_mlp() if name == "mlp" else make(name, TrainRecipe(l2=0.1))
        wrapped = data_parallel(model)
        torch.autograd.backward(wrapped(batch(part=SHARDS[size][rank])))
        torch.save({key: p.grad for key, p in model.named_parameters()}, directory / f"{name}-{rank}.pt")


@pytest.mark.parametrize("size", [2, 3])
def test_gradients_of_workers_equal_those_of_one_process(tmp_path: Path, size: int) -> None:
    run_group(_save_gradients, size, tmp_path)
    mlp = make_mlp()
    torch.autograd.backward(mlp(batch()))
    of_mlp = {key: p.grad for key, p in mlp.named_parameters() if p.grad is not None}
    expected = {"gmf": gradients("gmf", [slice(0, B)]), "mlp": of_mlp}
    for name, rank in itertools.product(expected, range(size)):
        found: dict[str, Any] = torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True)
        assert found.keys() == expected[name].keys()
        for key, gradient in expected[name].items():
            torch.testing.assert_close(found[key], gradient, msg=f"{name}: {key} on worker {rank}")


@pytest.mark.parametrize("name", ["mf", "gmf"])
def test_trained_model_scores_as_the_model_in_training(name: str) -> None:
    model = make(name)
    trained = model.export()
    scores = trained.scores(trained.users(np.arange(USERS)))
    for user, item in itertools.product(range(USERS), range(ITEMS)):
        assert scores[user, item] == pytest.approx(logit_by_hand(model, user, item), abs=1e-5)


def test_mlp_is_neumf_without_its_gmf_product() -> None:
    model = make_mlp()
    user_idx, item_idx = torch.arange(USERS), torch.arange(ITEMS).repeat(USERS, 1)
    gmf, mlp = model.branches(user_idx, item_idx)
    biases = model.user_bias[:, None] + model.item_bias[None] + model.global_bias
    torch.testing.assert_close(gmf, biases)
    trained = model.export()
    np.testing.assert_allclose(
        trained.scores(trained.users(np.arange(USERS))), (gmf + mlp).detach().numpy(), rtol=1e-5, atol=1e-6
    )
    assert trained.recall_space() is None


@pytest.mark.parametrize("name", ["mf", "gmf"])
def test_folded_in_history_scores_above_other_items_and_starts_from_a_trained_user(name: str) -> None:
    trained = make(name).export()
    history = np.array([1, 4, 8], np.int32)
    for user_idx in (None, 3):
        folded = trained.fold_in(history, user_idx)
        prior = trained.users(np.arange(USERS) if user_idx is None else np.array([user_idx]))
        assert isinstance(folded, DenseFactors)
        assert isinstance(prior, DenseFactors)
        assert folded.values[0, D] == 1  # the item bias counts once
        before = trained.scores(DenseFactors(prior.values.mean(axis=0, keepdims=True)))[0]
        gain = trained.scores(folded)[0] - before
        others = np.setdiff1d(np.arange(ITEMS), history)
        assert gain[history].mean() > gain[others].mean()


def test_a_model_without_gmf_branch_is_trained_by_several_threads() -> None:
    """Torch's `embedding_bag` fails on rows of width 0 if it has more than one thread."""
    model = NeuMF(USERS, ITEMS, MLPRecipe(embedding_dim=D, mlp_layers=(4,)))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.autograd.backward(model(batch()))
    finally:
        torch.set_num_threads(num_threads)
    assert model.item_mlp.grad is not None
    assert model.item_mlp.grad.abs().sum() > 0
