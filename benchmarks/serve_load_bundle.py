"""A registry with one bundle of the width of a real one, for serving benchmarks; by default the shape of MovieLens-1M.

Vectors are drawn around cluster centres, with a spectrum that decays as that of trained ones; the MLP's weights are
random. Neither costs less than a trained one.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle_writer import BundleModels, build_bundle
from ray_recsys.core.recommending.registry import Registry

NUM_USERS, NUM_ITEMS, ITEMS_PER_USER = 6040, 3706, 165
ITEMS_PER_CENTRE, SPREAD = 500, 0.6
MODEL = NeuMFRecipe(embedding_dim=64, mlp_layers=(128, 64, 32), init_std=0.3)
RECIPE = Recipe(model=MODEL)


def write_registry(directory: Path, num_items: int = NUM_ITEMS) -> Path:
    """Writes a prepared set and a bundle under a directory; returns the registry. The ids are 0, 1, 2 and so on."""
    prepared = _write_prepared(directory / "prepared", num_items)
    model = _model(num_items).export()
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


def _model(num_items: int) -> NeuMF:
    model, rng = (
        NeuMF(NUM_USERS, num_items, MODEL, generator=torch.Generator().manual_seed(0)),
        np.random.default_rng(0),
    )
    centres = _points(rng, max(16, num_items // ITEMS_PER_CENTRE))
    with torch.no_grad():
        for users, items in ((model.user_gmf, model.item_gmf), (model.user_mlp, model.item_mlp)):
            users.copy_(torch.from_numpy(_around(rng, centres, NUM_USERS)))
            items.copy_(torch.from_numpy(_around(rng, centres, num_items)))
        model.item_bias.copy_(-torch.log1p(torch.arange(num_items)) / 8)
        if model.gmf_output is not None:
            model.gmf_output.fill_(1.0)
    return model


def _points(rng: np.random.Generator, count: int) -> Float32s:
    width = MODEL.embedding_dim
    return (rng.standard_normal((count, width), np.float32) * np.arange(1, width + 1) ** -0.5).astype(np.float32)


def _around(rng: np.random.Generator, centres: Float32s, count: int) -> Float32s:
    return centres[rng.integers(0, len(centres), count)] + np.float32(SPREAD) * _points(rng, count)


def _write_prepared(path: Path, num_items: int) -> PreparedSet:
    rng = np.random.default_rng(0)
    drawn = np.concatenate([rng.choice(num_items, ITEMS_PER_USER, replace=False) for _ in range(NUM_USERS)])
    by_popularity = np.argsort(-np.bincount(drawn, minlength=num_items), kind="stable")
    seen = np.argsort(by_popularity)[drawn]  # index 0 is the most popular
    histories = histories_of(0, np.arange(NUM_USERS + 1) * ITEMS_PER_USER, seen.astype(np.int32))
    ids = pa.array(np.arange(num_items))
    columns = {"item_id": ids, "title": ids.cast(pa.string())}
    return write_set(path, [histories], num_items, item_columns=columns, user_ids=pa.array, recipe=RECIPE)
