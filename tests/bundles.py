"""Small bundles and registries with a random model, made without Ray."""

from pathlib import Path

import torch

from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle_writer import BundleModels, build_bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.storage.location import LocationLike

MODEL_RECIPE = NeuMFRecipe(embedding_dim=8, mlp_layers=(16, 8), init_std=0.5)


def random_model(num_users: int, num_items: int, *, seed: int = 0, recipe: NeuMFRecipe = MODEL_RECIPE) -> NeuMF:
    """Returns a model with random weights, biases included, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    model = NeuMF(num_users, num_items, recipe, generator=generator)
    with torch.no_grad():
        for bias in (model.user_bias, model.item_bias):
            bias.normal_(std=0.3, generator=generator)
    return model.eval()


def make_bundle(path: Path, prepared: PreparedSet, *, seed: int = 0, parent: str | None = None) -> str:
    """Writes a bundle of a random model over a prepared set; returns its version."""
    recipe = Recipe(model=MODEL_RECIPE)
    model = random_model(prepared.manifest.num_users, prepared.manifest.num_items, seed=seed).export()
    neighbours = model.neighbours(recipe.bundle.num_neighbours, SerialExecutor())
    assert neighbours is not None
    manifest = build_bundle(
        path,
        models=BundleModels(model, "neumf", None, "neumf", neighbours),
        prepared=prepared,
        recipe=recipe,
        metrics={"validation": {"NDCG@10": 0.25}},
        parent=parent,
    )
    return manifest.version


def publish_bundle(registry: LocationLike, prepared: PreparedSet, *, seed: int = 0) -> str:
    """Makes a bundle of a random model and makes it live; returns its version."""
    home = Registry(registry)
    with home.staging() as staging:
        make_bundle(staging / "bundle", prepared, seed=seed, parent=home.live())
        return home.publish(staging / "bundle")
