"""Popularity, all-time and decayed, against a loop; recent popularity beside models on a split by global time."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_recsys.config import EvaluateRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.popularity import fit
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.errors import DataError
from tests.executors import EXECUTOR
from tests.factories import make_prepared_set, rewrite_manifest, rewrite_partitions

DAY_S = 86_400


def spread_over_days(histories: Histories) -> Histories:
    training = histories.training
    assert training.timestamp_s is not None
    days = (training.timestamp_s * 7 + np.arange(len(training.item_idx)) * 3 + histories.first_user_idx) % 60
    return replace(histories, training=replace(training, timestamp_s=days * DAY_S))


def without_times(histories: Histories) -> Histories:
    parts = (histories.training, histories.validation, histories.test)
    return Histories(histories.first_user_idx, *(replace(part, timestamp_s=None) for part in parts))


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return rewrite_partitions(make_prepared_set(tmp_path / "set"), spread_over_days)


def test_decayed_counts_order_items_as_a_loop_does(prepared: PreparedSet, tmp_path: Path) -> None:
    recipe = parse_recipe({"model": {"name": "popularity", "half_life_days": 10}}, "test")
    interactions = []
    for partition in range(3):
        training = prepared.read_partition(partition).training
        assert training.timestamp_s is not None
        interactions += list(zip(training.item_idx.tolist(), training.timestamp_s.tolist(), strict=True))
    latest_s = max(second for _, second in interactions)
    decayed = np.zeros(40)
    for item, second in interactions:
        decayed[item] += 0.5 ** ((latest_s - second) / DAY_S / 10)
    model = fit(prepared, recipe, EXECUTOR)
    order = np.argsort(-model.item_scores, kind="stable")
    assert (np.diff(decayed[order]) <= 1e-12).all()
    assert not np.array_equal(order, np.argsort(-prepared.item_counts(), kind="stable"))
    (tmp_path / "model").mkdir()
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert np.array_equal(again.scores(again.users(np.array([3])))[0], model.item_scores)


def test_a_half_life_needs_times(prepared: PreparedSet) -> None:
    recipe = parse_recipe({"model": {"name": "popularity", "half_life_days": 10}}, "test")
    with pytest.raises(DataError, match=r"half_life_days = 10: .*/set has no times"):
        fit(rewrite_partitions(prepared, without_times), recipe, EXECUTOR)


def test_recent_popularity_is_a_baseline_of_a_split_by_time(prepared: PreparedSet) -> None:
    assert list(evaluate([], prepared, EvaluateRecipe(), EXECUTOR, seed=1).models) == ["Popularity", "Random"]
    by_time = rewrite_manifest(prepared, split={"method": "global_time"})
    found = evaluate([], by_time, EvaluateRecipe(), EXECUTOR, seed=1).models
    assert list(found) == ["Popularity", "Recent popularity", "Random"]
    assert found["Recent popularity"].metrics != found["Popularity"].metrics
