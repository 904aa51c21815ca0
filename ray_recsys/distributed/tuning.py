"""Ray Tune over embedding width and learning rate, with ASHA; the objective is validation NDCG@10.

A trial runs the same epochs as a train worker, alone in its own process: concurrent trials use a machine better than
data parallelism inside each, and nothing is left behind when the scheduler ends one (Train's placement groups would be,
without a dashboard).
"""

import csv
import math
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.epochs import train_epochs
from ray_recsys.core.training.learner import METRIC, Learner
from ray_recsys.core.training.validation import Validation
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.distributed.training_loop import set_threads
from ray_recsys.errors import ArtifactError, DataError, StageError
from ray_recsys.progress import Reporter, silent

BEST_RECIPE = "best_recipe.toml"
TRIALS = "trials.csv"
_STORAGE = "ray"


class Trial(BaseModel):
    """One trial; its metrics are those of its best epoch."""

    model_config = ConfigDict(frozen=True)

    embedding_dim: int
    learning_rate: float
    num_epochs: int
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    error: str | None = None


class TuneResult(BaseModel):
    """What a search found."""

    model_config = ConfigDict(frozen=True)

    output: Path
    best_recipe: Path
    """Trains as it is."""
    num_trials: int
    best: Trial
    trials: tuple[Trial, ...]
    """Best first."""
    wall_s: float


def with_values(recipe: Recipe, embedding_dim: int, learning_rate: float) -> Recipe:
    """Returns the recipe with a trial's two values in it."""
    model = recipe.model.model_copy(update={"embedding_dim": embedding_dim})
    train = recipe.train.model_copy(update={"learning_rate": learning_rate})
    return recipe.model_copy(update={"model": model, "train": train})


def tune(data: Path, output: Path, recipe: Recipe, *, report: Reporter = silent) -> TuneResult:
    """Tries `tune.num_trials` recipes and writes the best one and a table of all.

    Args:
        data: A prepared set with validation interactions, on storage that all nodes see.
        output: Directory to make.
        recipe: Space and schedule under [tune]; the rest is what every trial shares.
        report: Takes a line a trial.

    Raises:
        ArtifactError: `output` exists, or `data` cannot be read.
        ClusterError: No CPU is free.
        DataError: The prepared set has no validation interactions.
        StageError: Every trial failed.
    """
    start_s = time.perf_counter()
    prepared = PreparedSet.open(data)
    if not prepared.manifest.num_validation:
        raise DataError(f"{data} has no validation interactions to choose by; prepare it with another [split]")
    output = output.absolute()
    if output.exists():
        raise ArtifactError(f"{output} exists already; give another directory")
    prepared.verify()
    require_cpu("tune", recipe.cluster, report=report)
    output.mkdir(parents=True)
    report(f"{recipe.tune.num_trials} trials, {recipe.tune.max_concurrent_trials} at a time")
    grid = _fit(prepared, output, recipe, report)
    trials = sorted((_trial_of(grid[place]) for place in range(len(grid))), key=_value, reverse=True)
    _write_table(output / TRIALS, trials)
    best = trials[0]
    if best.error is not None:
        raise StageError(f"every trial failed; the first: {best.error}; see {output / TRIALS}")
    chosen = with_values(recipe, best.embedding_dim, best.learning_rate)
    (output / BEST_RECIPE).write_text(dump_recipe(chosen), encoding="utf8")
    shutil.rmtree(output / _STORAGE, ignore_errors=True)
    for place, trial in enumerate(trials, start=1):
        report(f"{place}. {_describe(trial)}")
    return TuneResult(
        output=output,
        best_recipe=output / BEST_RECIPE,
        num_trials=len(trials),
        best=best,
        trials=tuple(trials),
        wall_s=round(time.perf_counter() - start_s, 3),
    )


def run_trial(config: dict[str, Any], *, data: Path, recipe: Recipe) -> None:
    """Trains one recipe in this process and reports its best validation after each epoch to Tune."""
    chosen = with_values(recipe, config["embedding_dim"], config["learning_rate"])
    set_threads(chosen, workers_on_node=recipe.tune.max_concurrent_trials)
    prepared = PreparedSet.open(data)
    learner = Learner(chosen, prepared.manifest.num_users, prepared.manifest.num_items)

    def tell(_: object) -> None:
        progress = learner.progress
        metrics = {METRIC: 0.0} | progress.best_metrics
        ray_tune.report({**metrics, "num_epochs": progress.num_epochs, "best_epoch": progress.best_epoch})

    train_epochs(learner, local_feed(prepared, chosen), Validation.read(prepared, chosen), tell)


def _fit(prepared: PreparedSet, output: Path, recipe: Recipe, report: Reporter) -> ray_tune.ResultGrid:
    space = recipe.tune
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(partial(run_trial, data=prepared.path, recipe=recipe), {"cpu": 1}),
        param_space={
            "embedding_dim": ray_tune.choice(list(space.embedding_dim)),
            "learning_rate": ray_tune.loguniform(space.learning_rate_min, space.learning_rate_max),
        },
        tune_config=ray_tune.TuneConfig(
            metric=METRIC,
            mode="max",
            num_samples=space.num_trials,
            search_alg=BasicVariantGenerator(max_concurrent=space.max_concurrent_trials, random_state=recipe.seed),
            scheduler=ASHAScheduler(
                time_attr="training_iteration",
                max_t=recipe.train.epochs,
                grace_period=min(space.grace_epochs, recipe.train.epochs),
                reduction_factor=space.reduction_factor,
            ),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name="tune", storage_path=str(output / _STORAGE), verbose=0, callbacks=[_TellOfTrials(report)]
        ),
    )
    return tuner.fit()


class _TellOfTrials(ray_tune.Callback):
    """Reports each trial that ends."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._num_ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._num_ended += 1
        metrics, config = trial.last_result or {}, trial.config
        self._report(
            f"trial {self._num_ended}: embedding_dim {config['embedding_dim']}, "
            f"learning_rate {config['learning_rate']:.2g}: {METRIC} {metrics.get(METRIC, 0.0):.4f} "
            f"after {metrics.get('num_epochs', 0)} epochs"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._num_ended += 1
        self._report(f"trial {self._num_ended} failed: {trial.config}")


def _trial_of(result: Any) -> Trial:
    metrics = result.metrics or {}
    error = None if result.error is None else str(result.error).strip().splitlines()[-1]
    return Trial(
        embedding_dim=result.config["embedding_dim"],
        learning_rate=result.config["learning_rate"],
        num_epochs=metrics.get("num_epochs", 0),
        best_epoch=metrics.get("best_epoch", 0),
        metrics={name: metrics[name] for name in ("Hit@10", METRIC, "Recall@10", "MRR") if name in metrics},
        seconds=round(metrics.get("time_total_s", 0.0), 3),
        error=error,
    )


def _value(trial: Trial) -> float:
    return -math.inf if trial.error is not None else trial.metrics.get(METRIC, 0.0)


def _describe(trial: Trial) -> str:
    if trial.error is not None:
        return f"embedding_dim {trial.embedding_dim}, learning_rate {trial.learning_rate:.2g}: failed, {trial.error}"
    return (
        f"embedding_dim {trial.embedding_dim}, learning_rate {trial.learning_rate:.2g}: {METRIC} "
        f"{trial.metrics.get(METRIC, 0.0):.4f} (epoch {trial.best_epoch} of {trial.num_epochs}, {trial.seconds:.0f} s)"
    )


def _write_table(path: Path, trials: list[Trial]) -> None:
    names = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["embedding_dim", "learning_rate", "num_epochs", "best_epoch", *names, "seconds", "error"])
        for trial in trials:
            metrics = [trial.metrics.get(name, "") for name in names]
            values = [trial.embedding_dim, trial.learning_rate, trial.num_epochs, trial.best_epoch]
            writer.writerow([*values, *metrics, trial.seconds, trial.error or ""])
