"""The bootstrap against a loop over resamples and users, and against cases worked out by hand."""

import numpy as np
import pytest

from ray_recsys.core.evaluation.bootstrap import Interval, ResampledSums, user_weights

SEED, NUM_USERS, NUM_RESAMPLES = 7, 23, 50


def resampled(values: dict[str, np.ndarray], users: np.ndarray) -> ResampledSums:
    return ResampledSums.of(values, user_weights(users, NUM_RESAMPLES, SEED))


def test_means_equal_a_loop_over_resamples_and_users() -> None:
    rng = np.random.default_rng(0)
    users = rng.permutation(1000)[:NUM_USERS]
    values = {"Hit@10": rng.integers(0, 2, NUM_USERS).astype(np.float64), "NDCG@10": rng.random(NUM_USERS)}
    means = resampled(values, users).means()
    for resample in range(NUM_RESAMPLES):
        for name, by_user in values.items():
            repeated = []
            for row, user in enumerate(users):
                weight = user_weights(np.array([user]), NUM_RESAMPLES, SEED)[resample, 0]
                repeated += [by_user[row]] * int(weight)
            assert means[name][resample] == pytest.approx(np.mean(repeated), abs=1e-8)


def test_two_users_by_hand() -> None:
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 3.0], [1.0, 3.0], [0.0, 0.0]])
    sums = ResampledSums.of({"NDCG@10": np.array([1.0, 0.5])}, weights)
    assert sums.means()["NDCG@10"].tolist() == [0.75, 1.0, 0.5, 0.625, 0.0]
    interval = Interval.of(0.75, np.linspace(-1.0, 1.0, 201))  # quantile q is 2q - 1
    assert [interval.low, interval.high] == pytest.approx([-0.95, 0.95])
    assert not interval.is_apart_from_zero
    assert Interval.of(0.1, np.array([0.05, 0.2])).is_apart_from_zero


def test_sums_of_parts_in_any_order_are_the_same_bits() -> None:
    rng = np.random.default_rng(1)
    values, users = rng.random(300), np.arange(300)
    parts = [resampled({"MRR": values[part]}, users[part]) for part in np.array_split(np.arange(300), 7)]
    whole = resampled({"MRR": values}, users)
    for order in (parts, parts[::-1]):
        total = order[0]
        for part in order[1:]:
            total += part
        assert np.array_equal(total.sums["MRR"], whole.sums["MRR"])
        assert np.array_equal(total.weights, whole.weights)


def test_weights_are_poisson_and_do_not_depend_on_the_batch() -> None:
    weights = user_weights(np.arange(4000), 100, SEED)
    assert np.array_equal(weights[:, 17:19], user_weights(np.array([17, 18]), 100, SEED))
    shares = [np.mean(weights == n) for n in range(3)]
    assert shares == pytest.approx([0.3679, 0.3679, 0.1839], abs=0.003)
    assert weights.var() == pytest.approx(1.0, abs=0.02)
    assert not np.array_equal(weights, user_weights(np.arange(4000), 100, SEED + 1))


def test_the_interval_of_a_mean_has_the_width_of_the_normal_one() -> None:
    values = np.random.default_rng(2).random(2000)
    means = ResampledSums.of({"MRR": values}, user_weights(np.arange(2000), 2000, SEED)).means()["MRR"]
    interval = Interval.of(float(values.mean()), means)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(2000), rel=0.08)
