"""Makes a run's best checkpoint the live bundle of a registry.

The similar items of a large catalogue are found in Ray tasks, a block of items each. Whatever fails before the last
step, the registry's live bundle stays as it was.
"""

from pathlib import Path

import ray
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.models.neighbours import Neighbours, block_bounds, block_neighbours, join_blocks, unit_rows
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle import build_bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.training.run import Run
from ray_recsys.core.training.trained_model import TrainedModel
from ray_recsys.progress import Reporter, silent


class PublishResult(BaseModel):
    """What became live."""

    model_config = ConfigDict(frozen=True)

    version: str
    path: Path
    parent: str | None
    """The version that was live before."""
    num_users: int
    num_items: int
    num_interactions: int
    metrics: dict[str, float]
    """Validation metrics of the run."""


def publish(run: Path, data: Path, registry: Path, recipe: Recipe, *, report: Reporter = silent) -> PublishResult:
    """Builds a bundle of a run's best checkpoint, checks it and makes it live.

    Args:
        run: What `train` left.
        data: The prepared set that it was trained on.
        registry: Where bundles live; made if need be.
        recipe: Its `bundle` section is used; the bundle carries the run's recipe with that section.
        report: Told of each step.

    Raises:
        ArtifactError: Run or data are damaged, or do not belong together.
    """
    opened, prepared, home = Run.open(run), PreparedSet.open(data), Registry(registry)
    trained = TrainedModel.open(run)
    trained.check_fits(prepared)
    prepared.verify()
    model = trained.load()
    neighbours = item_neighbours(model, recipe.bundle.num_neighbours)
    report(f"bundle: {model.num_users:,} users, {model.num_items:,} items")
    with home.staging() as staging:
        manifest = build_bundle(
            staging / "bundle",
            model=model,
            prepared=prepared,
            recipe=opened.manifest.recipe.model_copy(update={"bundle": recipe.bundle}),
            item_neighbours=neighbours,
            metrics={"validation": opened.manifest.metrics},
            parent=home.live(),
        )
        version = home.publish(staging / "bundle")
    report(f"{version} is live in {home.path}")
    counts = manifest.model_dump(include={"num_users", "num_items", "num_interactions"})
    return PublishResult(
        version=version,
        path=home.bundle_path(version),
        parent=manifest.parent,
        metrics=manifest.metrics["validation"],
        **counts,
    )


def item_neighbours(model: NeuMF, num_neighbours: int) -> Neighbours:
    """Returns the items most similar to each by the cosine of their GMF and MLP embeddings side by side."""
    with torch.inference_mode():
        unit = unit_rows(torch.cat([model.item_gmf, model.item_mlp], dim=1).numpy())
    blocks = block_bounds(len(unit))
    if len(blocks) == 1:
        return block_neighbours(unit, *blocks[0], num_neighbours)
    shared = ray.put(unit)
    return join_blocks(ray.get([_neighbours_task.remote(shared, *bounds, num_neighbours) for bounds in blocks]))


@ray.remote
def _neighbours_task(unit: Float32s, start: int, stop: int, num_neighbours: int) -> Neighbours:
    return block_neighbours(unit, start, stop, num_neighbours)
