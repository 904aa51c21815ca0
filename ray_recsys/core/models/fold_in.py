"""Fold-in of a new user into a model trained by logistic loss: the user's own parameters, fitted to a history.

Minimises, over the user's parameters alone, binary cross-entropy with the history as positives and other items as
negatives, plus a Gaussian prior around the mean user, or around the trained user whose history has grown. Steps are
Newton's with the curvature of the logistic loss replaced by its upper bound 1/4: a new user is far from the mean, where
Newton's own curvature overshoots; the bound does not, and a few steps of it also stop early, as training does. Same
history, same parameters.

Shapes: C history items and negatives, I items, P parameters of a user.

Source: Böhning, Lindsay: Monotonicity of quadratic-approximation algorithms, Ann. Inst. Stat. Math. 1988, section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s, Int64s

NUM_STEPS = 3
PRIOR_PRECISION = 1.0  # weight of the prior relative to the loss summed over positives; chosen on ML-100K's validation
NEGATIVES_PER_POSITIVE = 4.0  # total weight of negatives, as in training
MAX_NEGATIVES = 1500
MAX_HISTORY = 500  # the latest count; the time of a fold-in is bounded
_MAX_CURVATURE = 0.25  # of log(1 + e^x)

Linearise = Callable[[Float32s], tuple[Float32s, Float32s]]
"""Parameters [P] → (logits [C], their derivatives by the parameters [C, P])."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Items [C] with labels [C] and weights [C]; negatives together weigh 4 times the positives."""

    items: Int64s
    labels: Float32s
    weights: Float32s


class ExampleDrawer:
    """Makes the examples of a history; negatives are the same for every user but for the history.

    Args:
        num_items: I.
    """

    def __init__(self, num_items: int) -> None:
        self._drawn = np.random.default_rng(0).permutation(num_items).astype(np.int32)

    def examples(self, history: Int32s) -> Examples:
        """Returns the history's latest 500 items as positives, and up to 1,500 items outside of it as negatives."""
        positives, chosen = np.unique(history[-MAX_HISTORY:]), np.unique(history)
        drawn = self._drawn[: MAX_NEGATIVES + len(chosen)]
        negatives = drawn[~np.isin(drawn, chosen)][:MAX_NEGATIVES]
        items = np.concatenate([positives, negatives]).astype(np.int64)
        labels = np.zeros(len(items), np.float32)
        labels[: len(positives)] = 1
        weights = np.ones(len(items), np.float32)
        weights[len(positives) :] = NEGATIVES_PER_POSITIVE * len(positives) / max(len(negatives), 1)
        return Examples(items, labels, weights)


def fit_user(prior: Float32s, examples: Examples, linearise: Linearise) -> Float32s:
    """Returns the parameters of a user after a few steps from the prior's mean, float32[P].

    Curvature and steps are float64: their condition number is in the thousands, and the order in which float32 sums
    were added, which depends on threads and processor, would change scores by 0.1.
    """
    user = prior.astype(np.float64)
    for _ in range(NUM_STEPS):
        logits, jacobian = (values.astype(np.float64) for values in linearise(user.astype(np.float32)))
        residual = examples.weights * (1 / (1 + np.exp(-logits)) - examples.labels)
        gradient = jacobian.T @ residual + PRIOR_PRECISION * (user - prior)
        curvature = (jacobian * (_MAX_CURVATURE * examples.weights)[:, None]).T @ jacobian
        curvature[np.diag_indices_from(curvature)] += PRIOR_PRECISION
        user = user - np.linalg.solve(curvature, gradient)
    fitted: Float32s = user.astype(np.float32)
    return fitted
