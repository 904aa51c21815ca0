"""A warm start keeps what a bundle knows, by id, and gives what is new a row that its history or its users explain."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.contract import GradientModel
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle_writer import BundleModels, build_bundle
from ray_recsys.core.training.run import can_resume, finish_run, read_start, start_of, start_run
from ray_recsys.core.training.warm_start import WarmStart, warm_start
from ray_recsys.core.vocabulary import Vocabulary
from ray_recsys.errors import ArtifactError, InputError, IntegrityError
from tests.factories import change_a_byte, make_prepared_set

FAMILIES: dict[str, dict[str, Any]] = {
    "mf": {"embedding_dim": 5},
    "gmf": {"embedding_dim": 5},
    "mlp": {"embedding_dim": 5, "mlp_layers": [8, 4], "layer_norm": True},
    "neumf": {"embedding_dim": 5, "mlp_layers": [8, 4], "recent_items": 4},
    "lightgcn": {"embedding_dim": 5, "num_layers": 2},
}
OLD_USERS, OLD_ITEMS, NEW_USERS, NEW_ITEMS = 50, 30, 64, 37


def recipe_of(name: str, **keys: Any) -> Recipe:
    return parse_recipe({"model": {"name": name, "init_std": 0.3, **FAMILIES[name], **keys}}, "test")


def build(prepared: PreparedSet, recipe: Recipe) -> GradientModel:
    make = MODELS[recipe.model.name].build
    assert make is not None
    return make(prepared, recipe)


def trained(prepared: PreparedSet, recipe: Recipe) -> GradientModel:
    """Returns a model whose every parameter is random, as after a training."""
    model, generator = build(prepared, recipe), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.3, generator=generator))
    return model


def write_bundle(path: Path, prepared: PreparedSet, recipe: Recipe, *, refit: bool = False) -> GradientModel:
    model = trained(prepared, recipe)
    exported, name = model.export(), recipe.model.name
    neighbours = exported.neighbours(3, SerialExecutor())
    assert neighbours is not None
    models = BundleModels(exported, name, None, name, neighbours)
    build_bundle(path, models=models, prepared=prepared, recipe=recipe, metrics={}, refit=refit)
    return model


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    path = tmp_path_factory.mktemp("old") / "data"
    return make_prepared_set(path, num_users=OLD_USERS, num_items=OLD_ITEMS)


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    """Has the old users and items, in another order, and more of both."""
    path = tmp_path_factory.mktemp("new") / "data"
    return make_prepared_set(path, num_users=NEW_USERS, num_items=NEW_ITEMS, num_partitions=4, seed=9)


def ids(prepared: PreparedSet) -> tuple[list[str], list[str]]:
    users = [read for part in range(len(prepared.manifest.partitions)) for read in prepared.read_user_ids(part)]
    return [str(user) for user in users], prepared.read_items()["item_id"].to_pylist()


def old_indices(old: PreparedSet, new: PreparedSet) -> tuple[Any, Any]:
    """Returns the old index of each new user and each new item, -1 for none: by a plain dictionary."""
    found = []
    for before, after in zip(ids(old), ids(new), strict=True):
        idx_before = {name: idx for idx, name in enumerate(before)}
        found.append(np.array([idx_before.get(name, -1) for name in after]))
    return found[0], found[1]


def score_matrix(model: GradientModel) -> Float32s:
    exported = model.export()
    return exported.scores(exported.users(np.arange(exported.num_users)))


@pytest.mark.parametrize("name", FAMILIES)
def test_known_rows_and_layers_are_kept_by_id(name: str, old: PreparedSet, new: PreparedSet, tmp_path: Path) -> None:
    recipe = recipe_of(name)
    before, after = write_bundle(tmp_path / "bundle", old, recipe), build(new, recipe)
    coverage = warm_start(after, tmp_path / "bundle", new)
    assert str(coverage) == "warm start: 50 of 64 users and 30 of 37 items are known"
    users, items = old_indices(old, new)
    assert not np.array_equal(items[items >= 0], np.arange(OLD_ITEMS))  # the order did change
    expected = before.parameters_of(tmp_path / "bundle/model")
    state = after.state_dict()
    for name_, values in state.items():
        kept = users if name_ in after.user_tables else items if name_ in after.item_tables else None
        got = values.numpy()
        if kept is not None:
            np.testing.assert_allclose(got[kept >= 0], expected[name_][kept[kept >= 0]], rtol=1e-6)
            assert np.isfinite(got).all()
        else:
            np.testing.assert_allclose(got, expected[name_], rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_on_the_same_data_the_model_scores_as_the_bundle_does(name: str, old: PreparedSet, tmp_path: Path) -> None:
    recipe = recipe_of(name)
    before, after = write_bundle(tmp_path / "bundle", old, recipe), build(old, recipe)
    assert not np.allclose(score_matrix(after), score_matrix(before), atol=1e-3)
    warm_start(after, tmp_path / "bundle", old)
    np.testing.assert_allclose(score_matrix(after), score_matrix(before), rtol=1e-4, atol=1e-5)


def test_new_rows_are_means_over_histories(old: PreparedSet, new: PreparedSet, tmp_path: Path) -> None:
    recipe = recipe_of("mf")
    before, after = write_bundle(tmp_path / "bundle", old, recipe), build(new, recipe)
    warm_start(after, tmp_path / "bundle", new)
    users, items = old_indices(old, new)
    parameters = before.parameters_of(tmp_path / "bundle/model")
    history: list[list[int]] = []
    for part in range(len(new.manifest.partitions)):
        training = new.read_partition(part).training
        history += [
            training.item_idx[a:b].tolist() for a, b in zip(training.offsets, training.offsets[1:], strict=False)
        ]
    for user_table, item_table in (("user_vectors", "item_vectors"), ("user_bias", "item_bias")):
        user_rows, item_rows = parameters[user_table], parameters[item_table]
        means_of_items: dict[int, Any] = {}
        for item in range(NEW_ITEMS):
            known = [user_rows[users[u]] for u in range(NEW_USERS) if users[u] >= 0 and item in history[u]]
            if known:
                means_of_items[item] = np.mean(known, axis=0)
        got_users, got_items = after.state_dict()[user_table].numpy(), after.state_dict()[item_table].numpy()
        for user in np.flatnonzero(users < 0).tolist():
            rows = [means_of_items[item] for item in history[user] if item in means_of_items]
            np.testing.assert_allclose(got_users[user], np.mean(rows, axis=0), rtol=1e-4, atol=1e-6)
        for item in np.flatnonzero(items < 0).tolist():
            of_users = []
            for user in range(NEW_USERS):
                own = [item_rows[items[i]] for i in history[user] if items[i] >= 0]
                if item in history[user] and own:
                    of_users.append(np.mean(own, axis=0))
            expected = np.mean(of_users, axis=0) if of_users else item_rows.mean(axis=0)
            np.testing.assert_allclose(got_items[item], expected, rtol=1e-4, atol=1e-6)


def test_a_bundle_of_other_ids_is_refused(old: PreparedSet, tmp_path: Path) -> None:
    recipe = recipe_of("mf")
    write_bundle(tmp_path / "bundle", old, recipe)
    others = make_prepared_set(tmp_path / "others", first_id=1000)
    with pytest.raises(ArtifactError, match="has none of the users and items"):
        warm_start(build(others, recipe), tmp_path / "bundle", others)
    assert Vocabulary.open(tmp_path / "bundle/users.arrow").find("user-00001") is not None


def test_a_bundle_that_does_not_fit_the_recipe_is_refused_by_key(old: PreparedSet, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", old, recipe_of("neumf"))
    with pytest.raises(ArtifactError, match=r"model\.embedding_dim = 5, the recipe 6"):
        WarmStart.open(tmp_path / "bundle", recipe_of("neumf", embedding_dim=6))
    with pytest.raises(ArtifactError, match=r"model\.name = neumf, the recipe mf"):
        WarmStart.open(tmp_path / "bundle", recipe_of("mf"))
    with pytest.raises(InputError, match="'ease' is fitted without epochs"):
        WarmStart.open(tmp_path / "bundle", parse_recipe({"model": {"name": "ease"}}, "test"))
    assert not WarmStart.open(tmp_path / "bundle", recipe_of("neumf", dropout=0.2, init_std=0.5)).refit
    with pytest.raises(
        IntegrityError, match=r"user_gmf of shape \(5,\), the recipe's model \(6,\)"
    ):  # whoever skipped the check
        warm_start(build(old, recipe_of("neumf", embedding_dim=6)), tmp_path / "bundle", old)
    change_a_byte(tmp_path / "bundle/model/model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        WarmStart.open(tmp_path / "bundle", recipe_of("neumf"))


def test_a_run_resumes_with_the_bundle_that_it_began_with(old: PreparedSet, tmp_path: Path) -> None:
    recipe = recipe_of("mf")
    write_bundle(tmp_path / "bundle", old, recipe, refit=True)
    bundle = WarmStart.open(tmp_path / "bundle", recipe)
    assert bundle.refit
    start_run(tmp_path / "run", start_of(old, recipe, bundle))
    assert can_resume(tmp_path / "run", start_of(old, recipe))
    assert can_resume(tmp_path / "run", start_of(old, recipe, bundle))
    assert read_start(tmp_path / "run").warm_start == bundle
    other = bundle.model_copy(update={"version": "another"})
    with pytest.raises(ArtifactError, match=f"started from bundle {bundle.version}, not from another"):
        can_resume(tmp_path / "run", start_of(old, recipe, other))
    (tmp_path / "run/model").mkdir()
    finished = finish_run(tmp_path / "run", num_epochs=1, best_epoch=1, metrics={})
    assert finished.warm_start == bundle  # with which a refit of the run begins
    shutil.rmtree(tmp_path / "run")
    start_run(tmp_path / "run", start_of(old, recipe))
    with pytest.raises(ArtifactError, match="started without a bundle"):
        can_resume(tmp_path / "run", start_of(old, recipe, bundle))
