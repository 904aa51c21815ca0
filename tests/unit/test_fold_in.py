"""Fold-in by Newton steps: one step by hand, and the same answer in whatever order sums are added."""

import numpy as np

from ray_recsys.core.arrays import Float32s
from ray_recsys.core.models.fold_in import NUM_STEPS, Examples, fit_user


def test_steps_of_one_parameter_by_hand() -> None:
    """Logit = user, label 1, weight 1, prior 0: each step moves by (1 - sigmoid(user) - user) / (1/4 + 1)."""
    examples = Examples(np.array([0]), np.ones(1, np.float32), np.ones(1, np.float32))
    expected = 0.0
    for _ in range(NUM_STEPS):
        expected += (1 - 1 / (1 + np.exp(-expected)) - expected) / 1.25
    fitted = fit_user(np.zeros(1, np.float32), examples, lambda user: (user, np.ones((1, 1), np.float32)))
    np.testing.assert_allclose(fitted, [expected], rtol=1e-6)


def test_order_of_the_examples_does_not_change_the_user() -> None:
    """Rounding differs by order as it does by thread count; a bundle's stored answers must survive both."""
    random = np.random.default_rng(0)
    num_examples, num_parameters = 1500, 64
    shared = random.normal(size=(num_examples, 1))  # nearly collinear features: condition number in the thousands
    features: Float32s = (3 * shared + random.normal(size=(num_examples, num_parameters))).astype(np.float32)
    labels = (random.random(num_examples) < 0.1).astype(np.float32)
    prior = random.normal(size=num_parameters).astype(np.float32)

    def fit(order: np.ndarray) -> Float32s:
        examples = Examples(order, labels[order], np.ones(num_examples, np.float32))
        return fit_user(prior, examples, lambda user: (features[order] @ user, features[order]))

    fitted = fit(np.arange(num_examples))
    for _ in range(5):
        np.testing.assert_allclose(fit(random.permutation(num_examples)), fitted, atol=2e-6)
