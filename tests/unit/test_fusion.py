"""NeuMF from trained branches: the fused logits are the weighted sum of the branches', and the branches' recipes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_recsys.config import MFRecipe, MLPRecipe, NeuMFRecipe, PretrainRecipe, Recipe
from ray_recsys.config.files import dump_recipe, load_recipe, parse_recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.models.contract import GradientModel, Model
from ray_recsys.core.models.fusion import Branch, branch_recipes, fuse, read_branch
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.distributed.tuning import search_space
from ray_recsys.errors import RecipeError
from tests.factories import make_prepared_set

MODEL = {"embedding_dim": 4, "mlp_layers": [6, 3], "init_std": 0.5, "layer_norm": True}


def recipe_of(pretrain: dict[str, Any], **model: Any) -> Recipe:
    return parse_recipe({"model": {**MODEL, **model, "pretrain": pretrain}}, "test")


Trained = tuple[dict[Branch, Model], dict[Branch, Mapping[str, Float32s]]]


def trained_branches(recipe: Recipe, prepared: PreparedSet) -> Trained:
    """Returns branches with random weights, biases included, and their parameters read from their files."""
    models: dict[Branch, Model] = {}
    parameters: dict[Branch, Mapping[str, Float32s]] = {}
    for branch, its in branch_recipes(recipe).items():
        model = build(prepared, its)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape))
        files = prepared.path.parent / branch
        files.mkdir()
        models[branch] = model.export()
        models[branch].save(files)
        parameters[branch] = read_branch(prepared, its, files)
    return models, parameters


def build(prepared: PreparedSet, recipe: Recipe) -> GradientModel:
    make = MODELS[recipe.model.name].build
    assert make is not None
    return make(prepared, recipe)


def scores(model: Model) -> Any:
    return model.scores(model.users(np.arange(model.num_users)))


@pytest.mark.parametrize("gmf_model", ["mf", "gmf"])
@pytest.mark.parametrize("gmf_output", [False, True])
@pytest.mark.parametrize("branches", ["gmf mlp", "gmf", "mlp"])
def test_fused_logits_are_the_weighted_sum_of_the_branches(
    gmf_model: str, gmf_output: bool, branches: str, tmp_path: Path
) -> None:
    from_scratch = {name: "none" for name in ("gmf", "mlp") if name not in branches.split()}
    recipe = recipe_of({"alpha": 0.3, "gmf_model": gmf_model, **from_scratch}, gmf_output=gmf_output)
    prepared = make_prepared_set(tmp_path / "data")
    models, parameters = trained_branches(recipe, prepared)
    fused = build(prepared, recipe)
    assert isinstance(fused, NeuMF)
    with torch.no_grad():
        (fused.mlp_output if branches == "gmf" else fused.user_gmf).zero_()  # a branch from scratch adds its own
    assert isinstance(recipe.model, NeuMFRecipe)
    assert recipe.model.pretrain is not None
    fuse(fused, parameters, recipe.model.pretrain)
    shares: dict[Branch, float] = {"gmf": 0.3, "mlp": 0.7} if len(models) > 1 else dict.fromkeys(models, 1.0)
    expected = sum(shares[name] * scores(model) for name, model in models.items())
    np.testing.assert_allclose(scores(fused.export()), expected, rtol=1e-4, atol=1e-5)


def test_recent_items_keep_their_initial_weights(tmp_path: Path) -> None:
    recipe = recipe_of({"mlp": "none"}, recent_items=3)
    prepared = make_prepared_set(tmp_path / "data")
    fused = build(prepared, recipe)
    assert isinstance(fused, NeuMF)
    assert fused.recent is not None
    before = fused.recent.items.clone()
    fuse(fused, trained_branches(recipe, prepared)[1], PretrainRecipe())
    assert torch.equal(fused.recent.items, before)


def test_branches_have_neumfs_shape_and_their_own_training() -> None:
    stage = {"feed": {"num_negatives": 8}, "train": {"epochs": 3, "l2": 0.01}}
    recipe = recipe_of({"gmf_model": "mf", "gmf": stage}, recent_items=3, dropout=0.2)
    gmf, mlp = (branch_recipes(recipe)[name] for name in ("gmf", "mlp"))
    assert gmf.model == MFRecipe(embedding_dim=4, init_std=0.5)
    assert (gmf.feed.num_negatives, gmf.train.epochs, gmf.train.l2) == (8, 3, 0.01)
    assert mlp.model == MLPRecipe(embedding_dim=4, mlp_layers=(6, 3), init_std=0.5, layer_norm=True, dropout=0.2)
    assert mlp.feed == Recipe().feed
    assert branch_recipes(Recipe()) == {}
    assert list(branch_recipes(recipe_of({"mlp": "none"}))) == ["gmf"]


def test_a_recipe_with_branches_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    recipe = recipe_of({"alpha": 0.3, "gmf": {"train": {"epochs": 3}}, "mlp": "none"})
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("pretrain", "message"),
    [
        ({"gmf": {"train": {"refit": True}}}, "the recipe's own train.refit"),
        ({"gmf": {"train": {"objective": "explicit"}}}, "objective"),
        ({"gmf": "none", "mlp": "none"}, "neither"),
    ],
)
def test_what_no_branch_can_do_is_refused(pretrain: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe_of(pretrain)


def test_tune_says_that_it_trains_no_branches() -> None:
    with pytest.raises(RecipeError, match="does not pre-train"):
        search_space(recipe_of({}))
