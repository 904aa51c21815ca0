"""A row for a user that the model was not trained on, from the items that they liked.

Minimises over the user's parameters alone (GMF and MLP embedding, bias) the loss of training, binary cross-entropy with
the history as positives and other items as negatives, plus a Gaussian prior around the mean user. The item side is left
as it is. Steps are Newton's with the curvature of the logistic loss replaced by its upper bound 1/4: a new user is far
from the mean, where Newton's own curvature overshoots; the bound does not, and a few steps of it also stop early, as
training does. Same history, same row.

Shapes: C history items and negatives, D embedding width, H1 first hidden width, P = 2 D + 1 parameters.

Source: Böhning, Lindsay: Monotonicity of quadratic-approximation algorithms, Ann. Inst. Stat. Math. 1988, section 4.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.recommending.user_row import UserRow

NUM_STEPS = 3
PRIOR_PRECISION = 1.0  # weight of the prior beside the loss summed over positives; chosen on ML-100K's validation
NEGATIVES_PER_POSITIVE = 4.0  # total weight of negatives, as in training
MAX_NEGATIVES = 1500
MAX_HISTORY = 500  # the latest count; the time of a fold-in is bounded
_MAX_CURVATURE = 0.25  # of log(1 + e^x)


class FoldIn:
    """Makes user rows from histories, a few milliseconds each."""

    def __init__(self, model: NeuMF) -> None:
        self._model = model.eval()
        with torch.inference_mode():
            self._gmf = (model.item_gmf * model.gmf_output).numpy()
            self._bias = (model.item_bias + model.global_bias).numpy()
            mean_user = [model.user_gmf.mean(0), model.user_mlp.mean(0), model.user_bias.mean().reshape(1)]
            self._mean = torch.cat(mean_user).numpy()
            self._output = model.gmf_output.detach().numpy()
            self._global_bias = float(model.global_bias)
        self._user_half = model.user_half.weight.detach().numpy()
        self._user_half_bias = model.user_half.bias.detach().numpy()
        self._width = model.item_gmf.shape[1]
        self._drawn = np.random.default_rng(0).permutation(model.num_items)  # fixed: the same for every user

    def row(self, history: Int32s) -> UserRow:
        """Returns the row of a user who liked these items, oldest first; only the latest 500 count."""
        items, labels, weights = self._examples(np.unique(history[-MAX_HISTORY:]))
        user = self._mean.copy()
        with torch.no_grad():
            item_hidden = self._model.item_half(self._model.item_mlp[torch.from_numpy(items)])
        for _ in range(NUM_STEPS):
            logits, jacobian = self._linearise(user, items, item_hidden)
            residual = weights * (1 / (1 + np.exp(-logits)) - labels)
            gradient = jacobian.T @ residual + PRIOR_PRECISION * (user - self._mean)
            curvature = (jacobian * (_MAX_CURVATURE * weights)[:, None]).T @ jacobian
            curvature[np.diag_indices_from(curvature)] += PRIOR_PRECISION
            user = user - np.linalg.solve(curvature, gradient)
        gmf, mlp, bias = np.split(user, [self._width, 2 * self._width])
        return UserRow(gmf * self._output, self._hidden(mlp), float(bias[0]) + self._global_bias)

    def _examples(self, positives: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], Float32s, Float32s]:
        """Returns items int64[C], labels [C] and weights [C]; negatives together weigh 4 times the positives."""
        drawn = self._drawn[: MAX_NEGATIVES + len(positives)]
        negatives = drawn[~np.isin(drawn, positives)][:MAX_NEGATIVES]
        items = np.concatenate([positives, negatives]).astype(np.int64)
        labels = np.zeros(len(items), np.float32)
        labels[: len(positives)] = 1
        weights = np.ones(len(items), np.float32)
        weights[len(positives) :] = NEGATIVES_PER_POSITIVE * len(positives) / max(len(negatives), 1)
        return items, labels, weights

    def _linearise(
        self, user: Float32s, items: npt.NDArray[np.int64], item_hidden: Tensor
    ) -> tuple[Float32s, Float32s]:
        """Returns the logits [C] of a user with items and their derivatives [C, P] by the user's parameters."""
        gmf, mlp, bias = np.split(user, [self._width, 2 * self._width])
        with torch.enable_grad():
            hidden = (item_hidden + torch.from_numpy(self._hidden(mlp))).requires_grad_()
            mlp_logits = self._model.mlp_head(hidden.clone())
            (by_hidden,) = torch.autograd.grad(mlp_logits.sum(), hidden)
        item_gmf = self._gmf[items]
        logits = item_gmf @ gmf + self._bias[items] + bias + mlp_logits.detach().numpy()
        by_bias = np.ones((len(items), 1), np.float32)
        return logits, np.concatenate([item_gmf, by_hidden.numpy() @ self._user_half, by_bias], axis=1)

    def _hidden(self, mlp: Float32s) -> Float32s:
        hidden: Float32s = self._user_half @ mlp + self._user_half_bias
        return hidden
