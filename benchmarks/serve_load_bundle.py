"""A registry with one bundle of the shape of MovieLens-1M and random weights, for serving benchmarks."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.core.artifact import atomic_directory
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import (
    ITEMS,
    PreparedManifest,
    PreparedSet,
    write_partition,
    write_prepared_manifest,
)
from ray_recsys.core.recommending.bundle import BundleModels, build_bundle
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
    seen = np.concatenate([rng.choice(NUM_ITEMS, ITEMS_PER_USER, replace=False) for _ in range(NUM_USERS)])
    training = Interactions(np.arange(NUM_USERS + 1) * ITEMS_PER_USER, seen.astype(np.int32))
    nothing = Interactions(np.zeros(NUM_USERS + 1, np.int64), np.zeros(0, np.int32))
    counts = np.sort(np.bincount(seen, minlength=NUM_ITEMS))[::-1]
    ids = pa.array(np.arange(NUM_ITEMS))
    items = pa.table(
        {"item_idx": ids.cast(pa.int32()), "item_id": ids, "count": counts, "title": ids.cast(pa.string())}
    )
    with atomic_directory(path) as staging:
        pq.write_table(items, staging / ITEMS)
        user_ids = pa.array(np.arange(NUM_USERS))
        info, digest = write_partition(staging, 0, Histories(0, training, nothing, nothing), user_ids)
        manifest = PreparedManifest(
            created_at="2026-01-01T00:00:00+00:00",
            rows_in=len(seen),
            rows_kept=len(seen),
            rows_dropped={},
            num_users=NUM_USERS,
            num_items=NUM_ITEMS,
            num_training=len(seen),
            num_validation=0,
            num_test=0,
            split={},
            input_fingerprint="benchmark",
            recipe=RECIPE,
            partitions=(info,),
        )
        write_prepared_manifest(staging, manifest, {info.file: digest})
    return PreparedSet.open(path)
