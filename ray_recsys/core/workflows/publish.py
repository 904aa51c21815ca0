"""Publishing: a run's model becomes the live bundle of a registry.

Until the last step the registry's live bundle stays as it was, whatever fails.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ray_recsys.config import BundleRecipe, ItemKNNRecipe, Recipe
from ray_recsys.core.executor import Executor
from ray_recsys.core.models import item_knn
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle import BundleModels, build_bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.training.run import Run
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.progress import Reporter, silent


class PublishResult(BaseModel):
    """The bundle that became live."""

    model_config = ConfigDict(frozen=True)

    version: str
    path: Path
    parent: str | None
    """The version that was live before."""
    model: str
    recall_model: str
    num_users: int
    num_items: int
    num_interactions: int
    refit: bool
    """Whether the model was trained on everything, held-out interactions included."""
    metrics: dict[str, float]
    """Validation metrics of the run."""


def publish(
    run: Path,
    data: Path,
    registry: Path,
    recipe: BundleRecipe,
    executor: Executor,
    *,
    recall_run: Path | None = None,
    report: Reporter = silent,
) -> PublishResult:
    """Builds a bundle of a run's model, checks it and makes it live.

    Args:
        run: The run whose model reranks.
        data: The prepared set that it was trained on.
        registry: Where bundles are kept; made if needed.
        recipe: The bundle carries the run's recipe with this section.
        executor: Finds similar items of a large catalogue.
        recall_run: Run of another model that recalls; None: the same model recalls and reranks.
        report: Progress.

    Raises:
        ArtifactError: A run or the data are damaged, or do not belong together.
    """
    prepared, home = PreparedSet.open(data), Registry(registry)
    reranks = _open(run, prepared)
    recalls = None if recall_run is None else _open(recall_run, prepared)
    prepared.verify()
    opened, rerank = Run.open(run), reranks.load()
    models = BundleModels(
        rerank=rerank,
        rerank_name=reranks.name,
        recall=None if recalls is None else recalls.load(),
        recall_name=(recalls or reranks).name,
        neighbours=_similar_items(rerank, prepared, recipe.num_neighbours, executor),
    )
    report(f"bundle: {rerank.num_users:,} users, {rerank.num_items:,} items")
    with home.staging() as staging:
        manifest = build_bundle(
            staging / "bundle",
            models=models,
            prepared=prepared,
            recipe=opened.manifest.recipe.model_copy(update={"bundle": recipe}),
            metrics={"validation": opened.manifest.metrics},
            refit=opened.manifest.refit,
            parent=home.live(),
        )
        version = home.publish(staging / "bundle")
    report(f"{version} is live in {home.path}")
    same = manifest.model_dump(include={"model", "recall_model", "num_users", "num_items", "num_interactions", "refit"})
    return PublishResult(
        version=version,
        path=home.bundle_path(version),
        parent=manifest.parent,
        metrics=manifest.metrics["validation"],
        **same,
    )


def _open(run: Path, prepared: PreparedSet) -> TrainedModel:
    trained = TrainedModel.open(run)
    trained.check_fits(prepared)
    return trained


def _similar_items(model: Model, prepared: PreparedSet, num_neighbours: int, executor: Executor) -> Neighbours:
    """Returns the model's similar items, or those of item-based CF if the model does not compare items."""
    found = model.neighbours(num_neighbours, executor)
    if found is None:
        recipe = Recipe(model=ItemKNNRecipe(num_neighbours=num_neighbours))
        found = item_knn.fit(prepared, recipe, executor).neighbours(num_neighbours, executor)
    return found
