"""What training minimises; every shard's part is divided by the global batch, so that gradients of workers add up.

implicit: mean over all pairs of BCE with logits, a positive's term times its weight (negatives weigh 1).
explicit: mean over the ratings of the weighted squared error.
Both: + gmf_loss_weight × the same on the GMF logits; + l2 / 2 × mean over pairs of the squared norms of their
embedding rows, so that a row's gradient is l2 × the row for each pair it is in.

Shapes: B positives of this shard (0 is possible), C = 1 + N items of each, column 0 the positive.

Source: BCE: He et al., Neural Collaborative Filtering, equation 7. L2 per pair: Rendle et al., Neural Collaborative
Filtering vs. Matrix Factorization Revisited, RecSys 2020, section 3.2.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import TrainRecipe
from ray_recsys.core.models.neumf import NeuMF


class Objective(nn.Module):
    """The model and its loss in one module, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: NeuMF, recipe: TrainRecipe) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self._loss = _squared_error if recipe.objective == "explicit" else _binary_cross_entropy

    def forward(
        self, user_idx: Tensor, item_idx: Tensor, weight: Tensor, rating: Tensor | None, global_batch_size: int
    ) -> Tensor:
        """Returns this shard's part of the global batch's loss, a scalar.

        Args:
            user_idx: int64[B].
            item_idx: int64 or int32 [B, C]; explicit: C = 1.
            weight: float32[B], of the positives.
            rating: float32[B] for the explicit objective, else None.
            global_batch_size: Positives of this step over all workers.
        """
        gmf_BC = self.model.gmf_logits(user_idx, item_idx)
        logits_BC = gmf_BC + self.model.mlp_logits(user_idx, item_idx)
        total = self._loss(logits_BC, weight, rating)
        if self.model.recipe.gmf_loss_weight:
            total = total + self.model.recipe.gmf_loss_weight * self._loss(gmf_BC, weight, rating)
        if self._recipe.l2:
            total = total + self._recipe.l2 / 2 * _square_norms(self.model, user_idx, item_idx)
        return total / (global_batch_size * item_idx.shape[1])


def _binary_cross_entropy(logits_BC: Tensor, weight: Tensor, _: Tensor | None) -> Tensor:
    positives = functional.softplus(-logits_BC[:, 0])
    return (positives * weight).sum() + functional.softplus(logits_BC[:, 1:]).sum()


def _squared_error(logits_BC: Tensor, weight: Tensor, rating: Tensor | None) -> Tensor:
    assert rating is not None
    assert logits_BC.shape[1] == 1
    return ((logits_BC[:, 0] - rating).square() * weight).sum()


def _square_norms(model: NeuMF, user_idx: Tensor, item_idx: Tensor) -> Tensor:
    """Returns the sum over pairs of the squared norms of their four embedding rows."""
    users = _square_norm(model.user_gmf, user_idx) + _square_norm(model.user_mlp, user_idx)
    if item_idx.numel() < model.num_items:
        items = _square_norm(model.item_gmf, item_idx) + _square_norm(model.item_mlp, item_idx)
    else:
        counts = torch.bincount(item_idx.reshape(-1), minlength=model.num_items).to(model.item_gmf.dtype)
        items = counts @ (model.item_gmf.square().sum(dim=1) + model.item_mlp.square().sum(dim=1))
    return users * item_idx.shape[1] + items


def _square_norm(table: Tensor, rows: Tensor) -> Tensor:
    return functional.embedding(rows, table).square().sum()
