"""NeuMF from branches that were trained by themselves: their recipes, and the fusion of what they learned.

The fused logit starts as alpha x GMF + (1 - alpha) x MLP, biases included; a branch that is trained first alone enters
whole, and the other one starts from scratch. What neither branch has (the table of recent items) keeps its initial
weights. The fused model is then trained as the recipe says; the paper goes on with SGD, here it is Adam.

Source: He et al.: Neural Collaborative Filtering, WWW 2017, section 3.4.1, equation 13.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from ray_recsys.config import GMFRecipe, MFRecipe, MLPRecipe, NeuMFRecipe, PretrainRecipe, Recipe
from ray_recsys.core.models.contract import GradientModel, Model
from ray_recsys.core.models.mf import TrainedMF
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.models.neumf_inference import TrainedNeuMF

Branch = Literal["gmf", "mlp"]


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
    """Returns the branch as a model by itself: its widths and initial weights are NeuMF's."""
    if branch == "gmf":
        factorisation = MFRecipe if pretrain.gmf_model == "mf" else GMFRecipe
        return factorisation(embedding_dim=model.gmf_dim, init_std=model.init_std)
    return MLPRecipe(**{name: getattr(model, name) for name in MLPRecipe.model_fields if name != "name"})


@torch.no_grad()
def fuse(model: GradientModel, branches: Mapping[Branch, Model], pretrain: PretrainRecipe) -> None:
    """Replaces the initial weights of an untrained NeuMF by those of its trained branches.

    Args:
        model: The NeuMF.
        branches: The trained models of `branch_recipes`.
        pretrain: Its alpha.
    """
    assert isinstance(model, NeuMF)
    gmf_share, mlp_share = (pretrain.alpha, 1 - pretrain.alpha) if len(branches) > 1 else (1.0, 1.0)
    for table in (model.user_bias, model.item_bias, model.global_bias):
        table.zero_()
    if (gmf := branches.get("gmf")) is not None:
        assert isinstance(gmf, TrainedMF)
        _take_gmf(model, gmf, gmf_share)
    if (mlp := branches.get("mlp")) is not None:
        assert isinstance(mlp, TrainedNeuMF)
        _take_mlp(model, mlp.network, mlp_share)


def _take_gmf(model: NeuMF, branch: TrainedMF, share: float) -> None:
    parameters = branch.parameters()
    if model.gmf_output is None:
        model.user_gmf.copy_(parameters.user_vectors * share)
    else:
        model.user_gmf.copy_(parameters.user_vectors)
        model.gmf_output.fill_(share)
    model.item_gmf.copy_(parameters.item_vectors)
    model.user_bias.add_(parameters.user_bias, alpha=share)
    model.item_bias.add_(parameters.item_bias, alpha=share)


def _take_mlp(model: NeuMF, branch: NeuMF, share: float) -> None:
    for name in ("user_mlp", "item_mlp", "user_half", "item_half", "hidden", "norms"):
        mine, theirs = getattr(model, name), getattr(branch, name)
        if isinstance(mine, torch.nn.Module):
            mine.load_state_dict(theirs.state_dict())
        elif mine is not None:
            mine.copy_(theirs)
    model.mlp_output.copy_(branch.mlp_output * share)
    model.user_bias.add_(branch.user_bias, alpha=share)
    model.item_bias.add_(branch.item_bias, alpha=share)
    model.global_bias.add_(branch.global_bias, alpha=share)
