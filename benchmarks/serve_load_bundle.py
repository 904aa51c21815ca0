"""A registry with one bundle of the shape of MovieLens-1M and random weights, for serving benchmarks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle_writer import BundleModels, build_bundle
from ray_recsys.core.recommending.registry import Registry

NUM_USERS, NUM_ITEMS, ITEMS_PER_USER = 6040, 3706, 165
MODEL = NeuMFRecipe(embedding_dim=64, mlp_layers=(128, 64, 32), init_std=0.3)
RECIPE = Recipe(model=MODEL)


def write_registry(directory: Path) -> Path:
    """Writes a prepared set and a bundle under a directory; returns the registry. The ids are 0, 1, 2 and so on."""
    prepared = _write_prepared(directory / "prepared")
    model = NeuMF(NUM_USERS, NUM_ITEMS, MODEL, generator=torch.Generator().manual_seed(0)).export()
    neighbours = model.neighbours(RECIPE.bundle.num_neighbours, SerialExecutor())
    assert neighbours is not None
    registry = Registry(directory / "registry")
    with registry.staging() as staging:
        build_bundle(
            staging / "bundle",
            models=BundleModels(model, "neumf", None, "neumf", neighbours),
            prepared=prepared,
            recipe=RECIPE,
            metrics={},
        )
        registry.publish(staging / "bundle")
    return registry.path


def _write_prepared(path: Path) -> PreparedSet:
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.choice(NUM_ITEMS, ITEMS_PER_USER, replace=False) for _ in range(NUM_USERS)])
    by_popularity = np.argsort(-np.bincount(drawn, minlength=NUM_ITEMS), kind="stable")
    seen = np.argsort(by_popularity)[drawn]  # index 0 is the most popular
    histories = histories_of(0, np.arange(NUM_USERS + 1) * ITEMS_PER_USER, seen.astype(np.int32))
    ids = pa.array(np.arange(NUM_ITEMS))
    columns = {"item_id": ids, "title": ids.cast(pa.string())}
    return write_set(path, [histories], NUM_ITEMS, item_columns=columns, user_ids=pa.array, recipe=RECIPE)
