"""Coverage, Gini, novelty and popularity lift: by hand, against a reference, and over any spread of users."""

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ray_recsys.core.evaluation.exposure import Exposure, coverage, gini, novelty, popularity_lift


def test_by_hand() -> None:
    assert coverage(np.array([3, 1]), 4) == 0.5
    assert gini(np.array([1, 3]), 4) == pytest.approx(0.625)
    assert gini(np.array([2, 2]), 2) == 0
    assert novelty(np.array([3, 1]), np.array([4, 1]), 8) == pytest.approx(1.5)
    assert popularity_lift(np.array([3, 1]), np.array([4, 1]), 2.0) == pytest.approx(0.625)


@example(6_227_638, 1, 1)  # a lift near 0, where rounding shows
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5))
def test_counts_equal_a_reference_and_add_up_over_any_spread_of_users(seed: int, num_users: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    num_items, training = 9, rng.integers(1, 50, 9)
    top = np.array([rng.permutation(num_items)[:5] for _ in range(num_users)])
    top[0, 3:] = -1
    profile = rng.random(num_users) * 20
    whole = Exposure.of(top, profile, (k, 5))
    worker = rng.integers(0, 3, num_users)
    parts = [Exposure.of(top[worker == part], profile[worker == part], (k, 5)) for part in range(3)]
    merged = reduce(add, parts, Exposure.nothing((k, 5)))
    values = whole.metrics(training, 100)
    assert merged.metrics(training, 100) == values

    shown = [item for row in top for item in row[:k] if item >= 0]
    counts = [shown.count(item) for item in range(num_items)]
    differences = sum(abs(a - b) for a in counts for b in counts)
    assert values[f"Coverage@{k}"] == len(set(shown)) / num_items
    assert values[f"Gini@{k}"] == pytest.approx(differences / (2 * num_items * sum(counts)))
    information = [-math.log2(training[item] / 100) for item in shown]
    assert values[f"Novelty@{k}"] == pytest.approx(sum(information) / len(shown))
    mean = sum(training[item] for item in shown) / len(shown)
    assert values[f"PopularityLift@{k}"] == pytest.approx(mean / profile.mean() - 1, rel=1e-5)
