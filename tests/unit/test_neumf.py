"""NeuMF against a naive implementation of the paper's formula, forward and gradient."""

import pytest
import torch
from torch import Tensor

from ray_recsys.config import NeuMFRecipe
from ray_recsys.core.models.neumf import NeuMF

USERS, ITEMS = 7, 11


def make(layer_norm: bool = False, dropout: float = 0.0) -> NeuMF:
    recipe = NeuMFRecipe(embedding_dim=4, mlp_layers=(6, 5, 3), init_std=0.5, layer_norm=layer_norm, dropout=dropout)
    model = NeuMF(USERS, ITEMS, recipe, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for bias in (model.user_bias, model.item_bias, model.global_bias, model.user_half.bias):
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(2)))
    return model


def textbook(model: NeuMF, user_idx: Tensor, item_idx: Tensor) -> Tensor:
    """Logits of pairs, int64[n] each: concatenate the embeddings, then full layers, then one output layer."""
    user_mlp, item_mlp = model.user_mlp[user_idx], model.item_mlp[item_idx]
    layers = [(torch.cat([model.user_half.weight, model.item_half.weight], dim=1), model.user_half.bias)]
    layers += [(layer.weight, layer.bias) for layer in model.hidden]  # type: ignore[misc]
    x = torch.cat([user_mlp, item_mlp], dim=1)
    for place, (weight, bias) in enumerate(layers):
        x = x @ weight.T + bias
        if model.norms is not None:
            x = model.norms[place](x)
        x = x.relu()
    joined = torch.cat([model.user_gmf[user_idx] * model.item_gmf[item_idx], x], dim=1)
    output = torch.cat([model.gmf_output, model.mlp_output])
    return joined @ output + model.user_bias[user_idx] + model.item_bias[item_idx] + model.global_bias


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_positives", [2, 9])  # fewer and more pairs than items: both ways of the item half
def test_equals_the_textbook_forward_and_backward(num_positives: int, layer_norm: bool) -> None:
    ours, naive = make(layer_norm), make(layer_norm)
    rng = torch.Generator().manual_seed(3)
    user_idx = torch.randint(USERS, (num_positives,), generator=rng)
    item_idx = torch.randint(ITEMS, (num_positives, 3), generator=rng)
    weights = torch.randn(num_positives, 3, generator=rng)

    logits = ours(user_idx, item_idx)
    expected = textbook(naive, user_idx.repeat_interleave(3), item_idx.reshape(-1)).view_as(logits)
    torch.autograd.backward((logits * weights).sum())
    torch.autograd.backward((expected * weights).sum())

    torch.testing.assert_close(logits, expected)
    for (name, a), b in zip(ours.named_parameters(), naive.parameters(), strict=True):
        assert a.grad is not None, f"{name} is not used"
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_recall_vectors_give_the_gmf_logit_up_to_a_constant_of_the_user() -> None:
    model = make()
    users, items = torch.arange(USERS), torch.arange(ITEMS).expand(USERS, ITEMS)
    user_vectors, item_vectors = model.recall_vectors()
    constant = (model.user_bias + model.global_bias).unsqueeze(1)
    torch.testing.assert_close(user_vectors @ item_vectors.T + constant, model.gmf_logits(users, items))


def test_an_empty_batch_gives_zero_gradients_to_every_parameter() -> None:
    model = make()
    model(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 5, dtype=torch.int64)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_seeded_weights_are_equal_and_dropout_acts_in_training_only() -> None:
    model, same = make(dropout=0.5), make(dropout=0.5)
    user_idx, item_idx = torch.arange(5), torch.arange(10).view(5, 2)
    assert torch.equal(model.eval()(user_idx, item_idx), same.eval()(user_idx, item_idx))
    assert not torch.equal(model.train()(user_idx, item_idx), same.eval()(user_idx, item_idx))
