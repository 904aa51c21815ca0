"""The ensemble of several seeds: mean scores, recall by the sum of inner products, fold-in, files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.contract import DenseFactors, Model
from ray_recsys.core.models.ensemble import Ensemble
from ray_recsys.core.models.registry import MODELS, load_model
from ray_recsys.core.prepared import PreparedSet
from tests.factories import make_prepared_set

NEUMF = {"embedding_dim": 4, "mlp_layers": [6, 3], "init_std": 0.5, "recent_items": 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("ensemble") / "data")


def members_of(prepared: PreparedSet, name: str, **keys: Any) -> list[Model]:
    build = MODELS[name].build
    assert build is not None
    recipes = [parse_recipe({"seed": seed, "model": {"name": name, **keys}}, "test") for seed in (1, 2, 3)]
    return [build(prepared, recipe).export() for recipe in recipes]


def scores(model: Model, item_idx: Any = None) -> Float32s:
    return model.scores(model.users(np.arange(model.num_users)), item_idx)


@pytest.mark.parametrize(("name", "keys"), [("neumf", NEUMF), ("mf", {"embedding_dim": 4}), ("mlp", {"init_std": 0.5})])
def test_scores_are_the_members_mean_for_the_catalogue_and_for_lists(
    name: str, keys: dict[str, Any], prepared: PreparedSet
) -> None:
    members = members_of(prepared, name, **keys)
    ensemble = Ensemble(members)
    items = np.random.default_rng(0).integers(0, ensemble.num_items, (ensemble.num_users, 7))
    for chosen in (None, items):
        expected = np.mean([scores(member, chosen) for member in members], axis=0)
        np.testing.assert_allclose(scores(ensemble, chosen), expected, rtol=1e-5, atol=1e-6)


def test_recall_searches_the_sum_of_the_members_inner_products(prepared: PreparedSet) -> None:
    members = members_of(prepared, "neumf", **NEUMF)
    ensemble = Ensemble(members)
    users = np.arange(ensemble.num_users)

    def products(model: Model) -> Float32s:
        space, factors = model.recall_space(), model.users(users)
        assert space is not None
        assert isinstance(factors, DenseFactors)
        found: Float32s = factors.values[:, : space.query_width] @ space.item_vectors.T
        return found

    expected = np.sum([products(member) for member in members], axis=0)
    np.testing.assert_allclose(products(ensemble), expected, rtol=1e-5, atol=1e-6)
    assert Ensemble(members_of(prepared, "mlp")).recall_space() is None


def test_a_history_is_folded_into_every_member(prepared: PreparedSet) -> None:
    members, history = members_of(prepared, "neumf", **NEUMF), np.array([3, 5, 7], np.int32)
    ensemble = Ensemble(members)
    folded = ensemble.fold_in(history)
    assert folded is not None
    expected = np.mean([m.scores(f) for m in members if (f := m.fold_in(history)) is not None], axis=0)
    np.testing.assert_allclose(ensemble.scores(folded), expected, rtol=1e-5, atol=1e-6)


def test_files_give_the_same_bits(prepared: PreparedSet, tmp_path: Path) -> None:
    ensemble = Ensemble(members_of(prepared, "neumf", **NEUMF))
    ensemble.save(tmp_path)
    read = load_model(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    np.testing.assert_array_equal(scores(read), scores(ensemble))
    similar, expected = (model.neighbours(3, SerialExecutor()) for model in (read, ensemble))
    assert similar is not None
    assert expected is not None
    np.testing.assert_array_equal(similar.item_idx, expected.item_idx)
