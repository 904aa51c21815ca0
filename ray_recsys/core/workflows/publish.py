"""Publishing: a run's model becomes the live bundle of a registry.

The registry's live bundle is unchanged until the last step, whatever fails.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from ray_recsys.config import BundleRecipe, ItemKNNRecipe, Recipe
from ray_recsys.core.executor import Executor
from ray_recsys.core.models import item_knn
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.arms import Arm, set_arm
from ray_recsys.core.recommending.bundle_writer import BundleModels, build_bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.training.run import Run
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.errors import ArtifactError, WorseModelError
from ray_recsys.progress import Reporter, silent
from ray_recsys.storage.location import Location, LocationLike


class GateResult(BaseModel):
    """Comparison of a model's validation metric with the live one's."""

    model_config = ConfigDict(frozen=True)

    metric: str
    new: float | None
    live: float | None
    min_ratio: float
    skipped: str | None = None
    """Why the two were not compared."""

    @property
    def is_worse(self) -> bool:
        """Whether the new model is below the required fraction of the live one's metric."""
        return self.new is not None and self.live is not None and self.new < self.min_ratio * self.live

    def describe(self) -> str:
        """Returns the comparison as text."""
        if self.new is None or self.live is None:
            return f"not compared: {self.skipped}"
        compared = f"{self.metric} {self.new:.4f}, the live version has {self.live:.4f}"
        return f"{compared} (required: {self.min_ratio:g} of it)"


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """The arm that a bundle becomes instead of the live version."""

    name: str
    percent: float
    """Share of the users."""
    is_shadow: bool = False


class PublishResult(BaseModel):
    """The bundle that was published."""

    model_config = ConfigDict(frozen=True)

    version: str
    path: Location
    parent: str | None
    """The version that was live before."""
    model: str
    recall_model: str
    num_users: int
    num_items: int
    num_interactions: int
    refit: bool
    """Whether a model of the bundle was trained on everything, held-out interactions included."""
    metrics: dict[str, float]
    """Validation metrics of the run."""
    gate: GateResult
    """The comparison with the version that was live before."""


def publish(
    run: LocationLike,
    data: LocationLike,
    registry: LocationLike,
    recipe: BundleRecipe,
    executor: Executor,
    *,
    recall_run: LocationLike | None = None,
    force: bool = False,
    arm: ArmSpec | None = None,
    report: Reporter = silent,
) -> PublishResult:
    """Builds a bundle of a run's model, checks it and makes it live, or an arm.

    Args:
        run: The run whose model reranks.
        data: The prepared set that it was trained on.
        registry: Location of the registry; created if needed.
        recipe: The bundle carries the run's recipe with this section.
        executor: Finds similar items of a large catalogue.
        recall_run: Run of another model that recalls; None: the same model recalls and reranks.
        force: Publish even a model that is worse than the live one.
        arm: The arm that it becomes, whatever its quality; None: it becomes the live version.
        report: Progress.

    Raises:
        ArtifactError: A run or the data are damaged or do not belong together, or the bundle is refused by its check.
        ConflictError: Another version went live since this one was compared with the live one.
        WorseModelError: The model is worse than the live one, by `recipe.min_ratio`.
    """
    prepared, home = PreparedSet.open(data), Registry(registry)
    before = home.pointer()
    reranks = _open(run, prepared)
    recalls = None if recall_run is None else _open(recall_run, prepared)
    prepared.verify()
    opened = Run.open(run)
    gate = compare_with_live(home, opened.manifest.metrics, prepared.manifest.input_fingerprint, recipe)
    report(f"quality gate: {gate.describe()}")
    if gate.is_worse and not force and arm is None:
        message = f"{run}: {gate.describe()}; {home.location} keeps {home.live()}"
        raise WorseModelError(message, remedy="publish with --force, or lower --min-ratio")
    models = _models(reranks, recalls, prepared, recipe, executor)
    report(f"bundle: {models.rerank.num_users:,} users, {models.rerank.num_items:,} items")
    with home.staging() as staging:
        manifest = build_bundle(
            staging / "bundle",
            models=models,
            prepared=prepared,
            recipe=opened.manifest.recipe.model_copy(update={"bundle": recipe}),
            metrics={"validation": opened.manifest.metrics},
            refit=reranks.refit or (recalls is not None and recalls.refit),
            parent=home.live(),
        )
        version = home.publish(staging / "bundle", before, live=arm is None)
    report(_go_live(home, version, arm))
    same = manifest.model_dump(include=_SAME)
    metrics = manifest.metrics["validation"]
    return PublishResult(version=version, path=home.locate(version), metrics=metrics, gate=gate, **same)


def _go_live(home: Registry, version: str, arm: ArmSpec | None) -> str:
    """Makes a version live or an arm; returns its new role as text."""
    if arm is None:
        return f"{version} is live in {home.location}"
    set_arm(home.location, Arm(name=arm.name, version=version, percent=arm.percent, shadow=arm.is_shadow))
    return f"{version} is arm {arm.name} of {home.location}, for {arm.percent:g} % of the users"


def _models(
    reranks: TrainedModel,
    recalls: TrainedModel | None,
    prepared: PreparedSet,
    recipe: BundleRecipe,
    executor: Executor,
) -> BundleModels:
    """Loads the models of a bundle, and finds the similar items of the one that reranks."""
    rerank = reranks.load()
    recall, recall_name = (None, reranks.name) if recalls is None else (recalls.load(), recalls.name)
    similar = _similar_items(rerank, prepared, recipe.num_neighbours, executor)
    return BundleModels(rerank, reranks.name, recall, recall_name, similar)


_SAME = {"parent", "model", "recall_model", "num_users", "num_items", "num_interactions", "refit"}


def compare_with_live(
    registry: Registry, metrics: Mapping[str, float], data_fingerprint: str, recipe: BundleRecipe
) -> GateResult:
    """Compares a run's validation metric with that of the live version, if both were measured on the same data."""

    def skip(reason: str) -> GateResult:
        return GateResult(metric=recipe.gate_metric, new=None, live=None, min_ratio=recipe.min_ratio, skipped=reason)

    version = registry.live()
    if version is None:
        return skip("no version is live")
    try:
        live = registry.manifest(version)
    except ArtifactError as error:  # a damaged version must not stop the one that replaces it
        return skip(f"the live version cannot be read ({error.message})")
    if live.data_fingerprint != data_fingerprint:
        return skip(f"{version} was built from other data")
    before, now = live.metrics.get("validation", {}).get(recipe.gate_metric), metrics.get(recipe.gate_metric)
    if before is None or now is None:
        return skip(f"{'the run' if now is None else version} has no validation {recipe.gate_metric}")
    return GateResult(metric=recipe.gate_metric, new=now, live=before, min_ratio=recipe.min_ratio)


def _open(run: LocationLike, prepared: PreparedSet) -> TrainedModel:
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
