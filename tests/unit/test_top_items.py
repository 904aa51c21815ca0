"""The best of several rows of scores equal a full sort of each, ties, -inf and rows of few included."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.core.recommending.top_items import best_first, top_items


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_rows=st.integers(0, 5),
    num_items=st.integers(0, 30),
    num_kept=st.integers(1, 35),
    num_values=st.sampled_from([3, 10**6]),
)
def test_the_best_of_each_row_equal_a_full_sort(
    seed: int, num_rows: int, num_items: int, num_kept: int, num_values: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, num_values, (num_rows, num_items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    expected = [
        [item for item in np.lexsort((np.arange(num_items), -row)).tolist() if row[item] > -np.inf][:num_kept]
        for row in scores
    ]
    before = scores.copy()
    assert [found.tolist() for found in best_first(scores, num_kept)] == expected
    assert [found.tolist() for found in top_items(scores, num_kept)] == [sorted(row) for row in expected]
    assert np.array_equal(scores, before)


def test_scores_of_every_sign_are_compared_by_value() -> None:
    scores = np.array([[-1.5, 0.0, -0.5, 2.5], [4.0, -np.inf, 1.0, 2.0]], np.float32)
    assert [found.tolist() for found in best_first(scores, 2)] == [[3, 1], [0, 3]]
