"""NeuMF from pre-trained branches: their recipes, and the fusion of their weights.

The fused logit starts as alpha x GMF + (1 - alpha) x MLP, biases included; a branch that is trained first alone enters
whole, and the other one starts from scratch. What neither branch has (the table of recent items) keeps its initial
weights. The fused model is then trained as the recipe says; the paper continues with SGD, here it is Adam.

Source: He et al.: Neural Collaborative Filtering, WWW 2017, section 3.4.1, equation 13.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ray_recsys.config import GMFRecipe, MFRecipe, MLPRecipe, NeuMFRecipe, PretrainRecipe, Recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.models.contract import GradientModel
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet

Branch = Literal["gmf", "mlp"]
_MLP_PARAMETERS = ("user_mlp", "item_mlp", "user_half", "item_half", "hidden", "norms")


def branch_recipes(recipe: Recipe) -> dict[Branch, Recipe]:
    """Returns the recipes of the branches that are trained first, in their order; empty without pre-training."""
    model = recipe.model
    if not isinstance(model, NeuMFRecipe) or model.pretrain is None:
        return {}
    recipes: dict[Branch, Recipe] = {}
    for branch in get_args(Branch):
        if (stage := getattr(model.pretrain, branch)) is not None:
            shared = {"model": _branch_model(model, branch, model.pretrain), "feed": stage.feed, "train": stage.train}
            recipes[branch] = recipe.model_copy(update=shared)
    return recipes


def _branch_model(model: NeuMFRecipe, branch: Branch, pretrain: PretrainRecipe) -> MFRecipe | GMFRecipe | MLPRecipe:
    """Returns the branch as a standalone model: its widths and initial weights are NeuMF's."""
    if branch == "gmf":
        factorisation = MFRecipe if pretrain.gmf_model == "mf" else GMFRecipe
        return factorisation(embedding_dim=model.gmf_dim, init_std=model.init_std)
    return MLPRecipe(**{name: getattr(model, name) for name in MLPRecipe.model_fields if name != "name"})


def read_branch(prepared: PreparedSet, recipe: Recipe, files: Path) -> Mapping[str, Float32s]:
    """Returns the parameters of a trained branch.

    Args:
        prepared: The set that it was trained on.
        recipe: Its own, of `branch_recipes`.
        files: Directory of the trained model.

    Raises:
        IntegrityError: A file is missing or damaged.
    """
    build = MODELS[recipe.model.name].build
    assert build is not None
    return build(prepared, recipe).parameters_of(files)


@torch.no_grad()
def fuse(model: GradientModel, branches: Mapping[Branch, Mapping[str, Float32s]], pretrain: PretrainRecipe) -> None:
    """Replaces the initial weights of an untrained NeuMF by those of its trained branches.

    Args:
        model: The NeuMF.
        branches: Parameters of each trained branch, of `read_branch`.
        pretrain: Its alpha.
    """
    assert isinstance(model, NeuMF)
    for table in (model.user_bias, model.item_bias, model.global_bias):
        table.zero_()
    gmf_share, mlp_share = (pretrain.alpha, 1 - pretrain.alpha) if len(branches) > 1 else (1.0, 1.0)
    for branch, arrays in branches.items():
        share = gmf_share if branch == "gmf" else mlp_share
        parameters = {name: torch.from_numpy(values.copy()) for name, values in arrays.items()}
        for name in ("user_bias", "item_bias", "global_bias"):
            getattr(model, name).add_(parameters[name], alpha=share)
        if branch == "gmf":
            _take_gmf(model, parameters, share)
        else:
            _take_mlp(model, parameters, share)


def _take_gmf(model: NeuMF, parameters: Mapping[str, Tensor], share: float) -> None:
    output = parameters.get("output", torch.ones(model.recipe.gmf_dim)) * share
    users = parameters["user_vectors"]
    if model.gmf_output is None:
        model.user_gmf.copy_(users * output)
    else:
        model.user_gmf.copy_(users)
        model.gmf_output.copy_(output)
    model.item_gmf.copy_(parameters["item_vectors"])


def _take_mlp(model: NeuMF, parameters: Mapping[str, Tensor], share: float) -> None:
    state = model.state_dict()
    for name, values in parameters.items():
        if name.split(".")[0] in _MLP_PARAMETERS:
            state[name].copy_(values)
    model.mlp_output.copy_(parameters["mlp_output"] * share)
