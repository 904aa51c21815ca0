"""Losses over pairs, and L2 on the embedding rows that pairs touch; sums, to be divided by the global batch.

Shapes: B positives of this worker (0 is possible), C = 1 + N items of each, column 0 the positive.

Source: BCE: He et al.: Neural Collaborative Filtering, WWW 2017, equation 7. L2 per pair: Rendle et al.: Neural
    Collaborative Filtering vs. Matrix Factorization Revisited, RecSys 2020, section 3.2.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ray_recsys.config import TrainRecipe
from ray_recsys.core.models.contract import TensorBatch

_SMALL = 8  # a pass over this many rows takes about the time of one gathered row and its gradient

PairLoss = Callable[[Tensor, TensorBatch], Tensor]
"""(logits or predicted ratings [B, C], batch) → sum over the pairs."""


def pair_loss(recipe: TrainRecipe) -> PairLoss:
    """Returns the loss of an objective: squared error of ratings, or binary cross-entropy with negatives."""
    return squared_error if recipe.objective == "explicit" else binary_cross_entropy


def binary_cross_entropy(logits_BC: Tensor, batch: TensorBatch) -> Tensor:
    """Returns the sum of BCE with logits; a positive's term times its weight, negatives weigh 1."""
    positives = functional.softplus(-logits_BC[:, 0])
    return (positives * batch.weight).sum() + functional.softplus(logits_BC[:, 1:]).sum()


def squared_error(predicted_BC: Tensor, batch: TensorBatch) -> Tensor:
    """Returns the weighted sum of squared errors of ratings; C = 1."""
    assert batch.rating is not None
    assert predicted_BC.shape[1] == 1
    return ((predicted_BC[:, 0] - batch.rating).square() * batch.weight).sum()


def user_square_norms(table: Tensor, batch: TensorBatch) -> Tensor:
    """Returns the sum over pairs of the squared norm of their user's row."""
    return _row_square_norms(table, batch.user_idx) * batch.item_idx.shape[1]


def item_square_norms(table: Tensor, batch: TensorBatch) -> Tensor:
    """Returns the sum over pairs of the squared norm of their item's row."""
    return _row_square_norms(table, batch.item_idx)


def _row_square_norms(table: Tensor, idx: Tensor) -> Tensor:
    """Returns the sum over indices of the squared norm of their row; each row is read once if the table is small."""
    if idx.numel() * _SMALL < len(table):
        return functional.embedding(idx, table).square().sum()
    counts = torch.bincount(idx.reshape(-1), minlength=len(table)).to(table.dtype)
    norms: Tensor = _WeightedSquareNorms.apply(table, counts)  # type: ignore[no-untyped-call]
    return norms


class _WeightedSquareNorms(torch.autograd.Function):
    """The sum of weight × squared norm over rows; its gradient, 2 × weight × row, in one pass over the table."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, weights)
        return torch.dot(torch.linalg.vector_norm(table, dim=1).square(), weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        table, weights = ctx.saved_tensors
        return table * (weights * (2 * gradients[0])).unsqueeze(1), None
