"""The loss by hand, and gradients of shards that add up to that of the whole batch."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from ray_recsys.config import TrainRecipe
from ray_recsys.core.training.objective import Objective
from tests.unit.test_neumf import ITEMS, USERS, make

B, C = 8, 3


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    user_idx = torch.randint(USERS, (B,), generator=rng)
    item_idx = torch.randint(ITEMS, (B, C), generator=rng)
    return user_idx, item_idx, torch.rand(B, generator=rng) + 0.5, torch.rand(B, generator=rng) * 5


def gradients(recipe: TrainRecipe, shards: list[slice]) -> dict[str, Tensor]:
    objective = Objective(make(), recipe)
    user_idx, item_idx, weight, rating = batch()
    is_explicit = recipe.objective == "explicit"
    items = item_idx[:, :1] if is_explicit else item_idx
    for part in shards:
        ratings = rating[part] if is_explicit else None
        objective(user_idx[part], items[part], weight[part], ratings, B).backward()
    return {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["implicit", "explicit"])
@pytest.mark.parametrize("bounds", [[0, 4, B], [0, 1, 6, B], [0, 0, B], [0, 5, 5, B]])
def test_gradients_of_shards_add_up(kind: str, bounds: list[int]) -> None:
    recipe = TrainRecipe.model_validate({"objective": kind, "gmf_loss_weight": 0.3, "l2": 0.1})
    whole = gradients(recipe, [slice(0, B)])
    summed = gradients(recipe, [slice(a, b) for a, b in itertools.pairwise(bounds)])
    assert whole.keys() == summed.keys() == dict(make().named_parameters(prefix="model")).keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, msg=name)


def test_implicit_loss_by_hand() -> None:
    model = make()
    user_idx, item_idx, weight, _ = batch()
    recipe = TrainRecipe(gmf_loss_weight=0.5, l2=0.2)
    logits, gmf = model(user_idx, item_idx), model.gmf_logits(user_idx, item_idx)
    expected = 0.0
    for b in range(B):
        for c in range(C):
            w = float(weight[b]) if c == 0 else 1.0
            sign = 1 if c == 0 else -1
            expected += w * math.log1p(math.exp(-sign * float(logits[b, c].detach())))
            expected += 0.5 * w * math.log1p(math.exp(-sign * float(gmf[b, c].detach())))
            user_rows = (model.user_gmf[user_idx[b]], model.user_mlp[user_idx[b]])
            item_rows = (model.item_gmf[item_idx[b, c]], model.item_mlp[item_idx[b, c]])
            expected += 0.2 / 2 * sum(float(row.detach().square().sum()) for row in (*user_rows, *item_rows))
    loss = Objective(model, recipe)(user_idx, item_idx, weight, None, B)
    assert float(loss.detach()) == pytest.approx(expected / (B * C), rel=1e-5)


def test_explicit_loss_by_hand() -> None:
    model = make()
    user_idx, item_idx, weight, rating = batch()
    predicted = model(user_idx, item_idx[:, :1])[:, 0]
    loss = Objective(model, TrainRecipe(objective="explicit"))(user_idx, item_idx[:, :1], weight, rating, B)
    torch.testing.assert_close(loss, ((predicted - rating) ** 2 * weight).sum() / B)
