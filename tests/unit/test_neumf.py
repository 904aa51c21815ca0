"""NeuMF in training against a naive implementation of the paper's formula; its loss by hand; sums over shards."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ray_recsys.config import NeuMFRecipe, TrainRecipe
from ray_recsys.core.models.contract import TensorBatch
from ray_recsys.core.models.neumf import NeuMF

USERS, ITEMS = 7, 11
B, C = 8, 3


def make(train: TrainRecipe | None = None, **keys: object) -> NeuMF:
    """Returns a small NeuMF whose biases are not zero."""
    recipe = NeuMFRecipe.model_validate({"embedding_dim": 4, "mlp_layers": (6, 5, 3), "init_std": 0.5, **keys})
    model = NeuMF(USERS, ITEMS, recipe, train, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for bias in (model.user_bias, model.item_bias, model.global_bias, model.user_half.bias):
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(2)))
    return model


def logits_of(model: NeuMF, user_idx: Tensor, item_idx: Tensor, recent: Tensor | None = None) -> Tensor:
    gmf, mlp = model.branches(user_idx, item_idx, recent)
    return gmf + mlp


def textbook(model: NeuMF, user_idx: Tensor, item_idx: Tensor, recent: list[list[int]] | None = None) -> Tensor:
    """Logits of pairs, int64[n] each: concatenate the embeddings, then full layers, then one output layer."""
    user_gmf, user_mlp, item_mlp = model.user_gmf[user_idx], model.user_mlp[user_idx], model.item_mlp[item_idx]
    layers = [(torch.cat([model.user_half.weight, model.item_half.weight], dim=1), model.user_half.bias)]
    if recent is not None:
        assert model.recent is not None
        means = _means_of(model, recent)
        user_gmf = user_gmf + (means * model.recent.gate).sum(dim=1)
        user_mlp = torch.cat([means.flatten(1), user_mlp], dim=1)
        layers = [(torch.cat([model.recent.layer.weight, layers[0][0]], dim=1), model.user_half.bias)]
    layers += [(layer.weight, layer.bias) for layer in model.hidden]  # type: ignore[misc]
    x = torch.cat([user_mlp, item_mlp], dim=1)
    for number, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        if model.norms is not None:
            x = model.norms[number](x)
        x = x.relu()
    joined = torch.cat([user_gmf * model.item_gmf[item_idx], x], dim=1)
    gmf_output = torch.ones(4) if model.gmf_output is None else model.gmf_output
    output = torch.cat([gmf_output, model.mlp_output])
    return joined @ output + model.user_bias[user_idx] + model.item_bias[item_idx] + model.global_bias


def _means_of(model: NeuMF, recent: list[list[int]]) -> Tensor:
    assert model.recent is not None
    rows = []
    for items in recent:
        for half_life in model.recipe.recent_half_lives:
            weights = torch.tensor([2 ** (-age / half_life) for age in range(len(items))])
            sums = sum((w * model.recent.items[i] for w, i in zip(weights, items, strict=True)), torch.zeros(4))
            rows.append(sums / weights.sum() if items else torch.zeros(4))
    return torch.stack(rows).view(len(recent), len(model.recipe.recent_half_lives), 4)


@pytest.mark.parametrize("gmf_output", [False, True])
@pytest.mark.parametrize("num_positives", [2, 9])
def test_recent_items_equal_the_textbook_forward_and_backward(num_positives: int, gmf_output: bool) -> None:
    keys: dict[str, Any] = {"recent_items": 4, "recent_half_lives": (1.0, 3.0), "gmf_output": gmf_output}
    ours, naive = make(**keys), make(**keys)
    rng = torch.Generator().manual_seed(5)
    user_idx = torch.randint(USERS, (num_positives,), generator=rng)
    item_idx = torch.randint(ITEMS, (num_positives, 3), generator=rng)
    weights = torch.randn(num_positives, 3, generator=rng)
    recent = [torch.randint(ITEMS, (n % 5,), generator=rng).tolist() for n in range(num_positives)]
    padded = torch.tensor([items + [-1] * (4 - len(items)) for items in recent])

    logits = logits_of(ours, user_idx, item_idx, padded)
    repeated = [items for items in recent for _ in range(3)]
    expected = textbook(naive, user_idx.repeat_interleave(3), item_idx.reshape(-1), repeated).view_as(logits)
    torch.autograd.backward((logits * weights).sum())
    torch.autograd.backward((expected * weights).sum())

    torch.testing.assert_close(logits, expected)
    for (name, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
        assert a.grad is not None, f"{name} is not used"
        torch.testing.assert_close(a.grad, b.grad, msg=name)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_positives", [2, 9])  # fewer and more pairs than items: both ways of the item half
def test_logits_equal_the_textbook_forward_and_backward(num_positives: int, layer_norm: bool) -> None:
    ours, naive = make(layer_norm=layer_norm), make(layer_norm=layer_norm)
    rng = torch.Generator().manual_seed(3)
    user_idx = torch.randint(USERS, (num_positives,), generator=rng)
    item_idx = torch.randint(ITEMS, (num_positives, 3), generator=rng)
    weights = torch.randn(num_positives, 3, generator=rng)

    logits = logits_of(ours, user_idx, item_idx)
    expected = textbook(naive, user_idx.repeat_interleave(3), item_idx.reshape(-1)).view_as(logits)
    torch.autograd.backward((logits * weights).sum())
    torch.autograd.backward((expected * weights).sum())

    torch.testing.assert_close(logits, expected)
    for (name, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
        assert a.grad is not None, f"{name} is not used"
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_seeded_weights_are_equal_and_dropout_acts_in_training_only() -> None:
    model, same = make(dropout=0.5), make(dropout=0.5)
    user_idx, item_idx = torch.arange(5), torch.arange(10).view(5, 2)
    assert torch.equal(logits_of(model.eval(), user_idx, item_idx), logits_of(same.eval(), user_idx, item_idx))
    assert not torch.equal(logits_of(model.train(), user_idx, item_idx), logits_of(same.eval(), user_idx, item_idx))


def batch(*, explicit: bool = False, part: slice = slice(0, B)) -> TensorBatch:
    """Returns a part of a batch of 8 positives with 2 negatives each, or of 8 ratings."""
    rng = torch.Generator().manual_seed(0)
    user_idx = torch.randint(USERS, (B,), generator=rng)
    item_idx = torch.randint(ITEMS, (B, C), generator=rng)
    weight, rating = torch.rand(B, generator=rng) + 0.5, torch.rand(B, generator=rng) * 5
    items = item_idx[part, :1] if explicit else item_idx[part]
    return TensorBatch(user_idx[part], items, weight[part], rating[part] if explicit else None, B)


def gradients(train: TrainRecipe, shards: list[slice]) -> dict[str, Tensor]:
    model = make(train, gmf_loss_weight=0.3)
    for part in shards:
        torch.autograd.backward(model(batch(explicit=train.objective == "explicit", part=part)))
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("objective", ["implicit", "explicit"])
@pytest.mark.parametrize("bounds", [[0, 4, B], [0, 1, 6, B], [0, 0, B], [0, 5, 5, B]])
def test_gradients_of_shards_add_up(objective: str, bounds: list[int]) -> None:
    train = TrainRecipe.model_validate({"objective": objective, "l2": 0.1})
    whole = gradients(train, [slice(0, B)])
    summed = gradients(train, [slice(a, b) for a, b in itertools.pairwise(bounds)])
    assert whole.keys() == summed.keys() == dict(make().named_parameters()).keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, msg=name)


def test_an_empty_shard_gives_zero_gradients_to_every_parameter() -> None:
    found = gradients(TrainRecipe(l2=0.1), [slice(0, 0)])
    assert found.keys() == dict(make().named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())


def test_implicit_loss_by_hand() -> None:
    model, given = make(TrainRecipe(l2=0.2), gmf_loss_weight=0.5), batch()
    gmf, mlp = model.branches(given.user_idx, given.item_idx)
    logits = gmf + mlp
    expected = 0.0
    for b in range(B):
        for c in range(C):
            w = float(given.weight[b]) if c == 0 else 1.0
            sign = 1 if c == 0 else -1
            expected += w * math.log1p(math.exp(-sign * float(logits[b, c].detach())))
            expected += 0.5 * w * math.log1p(math.exp(-sign * float(gmf[b, c].detach())))
            user, item = given.user_idx[b], given.item_idx[b, c]
            rows = (model.user_gmf[user], model.user_mlp[user], model.item_gmf[item], model.item_mlp[item])
            expected += 0.2 / 2 * sum(float(row.square().sum().detach()) for row in rows)
    assert float(model(given).detach()) == pytest.approx(expected / (B * C), rel=1e-5)


def test_explicit_loss_by_hand() -> None:
    model, given = make(TrainRecipe(objective="explicit")), batch(explicit=True)
    assert given.rating is not None
    predicted = logits_of(model, given.user_idx, given.item_idx)[:, 0].detach()
    expected = float((given.weight * (predicted - given.rating) ** 2).sum()) / B
    assert float(model(given).detach()) == pytest.approx(expected, rel=1e-5)
