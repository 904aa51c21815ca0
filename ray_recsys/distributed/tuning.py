"""Ray Tune over recipe keys, with ASHA; the objective is the model's validation metric.

A trial runs the same epochs as a train worker, alone in its own process: concurrent trials use a machine better than
data parallelism inside each, and nothing is left behind when the scheduler stops one (Train's placement groups would
be, without a dashboard). A model that is fitted without epochs is a trial of one step.
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
from ray_recsys.config.files import dump_recipe, with_values
from ray_recsys.config.space import Choice, Distribution, Uniform
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import DecidingMetric, Trainer, deciding_metric
from ray_recsys.core.training.validation import Validation
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.distributed.train_worker import set_threads
from ray_recsys.errors import ArtifactError, DataError, RecipeError, StageError
from ray_recsys.progress import Reporter, silent

BEST_RECIPE = "best_recipe.toml"
TRIALS = "trials.csv"
_STORAGE = "ray"


class Trial(BaseModel):
    """One trial; its metrics are those of its best epoch."""

    model_config = ConfigDict(frozen=True)

    values: dict[str, Any]
    """By recipe key."""
    num_epochs: int
    best_epoch: int
    metrics: dict[str, float]
    seconds: float
    error: str | None = None

    def __str__(self) -> str:
        values = ", ".join(f"{key} {_shown(value)}" for key, value in self.values.items())
        if self.error is not None:
            return f"{values}: failed, {self.error}"
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items() if name in _SHOWN)
        return f"{values}: {metrics} (epoch {self.best_epoch} of {self.num_epochs}, {self.seconds:.0f} s)"


_SHOWN = ("NDCG@10", "RMSE")


class TuneResult(BaseModel):
    """The result of a search."""

    model_config = ConfigDict(frozen=True)

    output: Path
    best_recipe: Path
    """Ready to train."""
    num_trials: int
    best: Trial
    trials: tuple[Trial, ...]
    """Best first."""
    wall_s: float


def tune(data: Path, output: Path, recipe: Recipe, *, report: Reporter = silent) -> TuneResult:
    """Tries `tune.num_trials` recipes and writes the best one and a table of all.

    Args:
        data: A prepared set with validation interactions, on storage that all nodes see.
        output: Directory to make.
        recipe: Space and schedule under [tune]; the rest is shared by all trials.
        report: Gets a line per trial.

    Raises:
        ArtifactError: `output` exists, or `data` cannot be read.
        ClusterError: No CPU is free.
        DataError: The prepared set has no validation interactions.
        RecipeError: A key of the space is unknown, a value is out of range, or there is nothing to search.
        StageError: Every trial failed.
    """
    start_s = time.perf_counter()
    space = search_space(recipe)
    prepared = PreparedSet.open(data)
    if not prepared.manifest.num_validation:
        raise DataError(f"{data} has no validation interactions to choose by", remedy="prepare it with another [split]")
    output = output.absolute()
    if output.exists():
        raise ArtifactError(f"{output} exists already", remedy="choose another directory")
    prepared.verify()
    require_cpu("tune", recipe.cluster, report=report)
    output.mkdir(parents=True)
    report(f"{recipe.tune.num_trials} trials of {', '.join(space)}, {recipe.tune.max_concurrent_trials} at a time")
    grid = _fit(prepared, output, recipe, space, report)
    metric = deciding_metric(recipe.train)
    found = [
        _trial_of(grid[number].config or {}, grid[number].metrics, grid[number].error) for number in range(len(grid))
    ]
    trials = sorted(found, key=lambda trial: _rank(trial, metric))
    _write_table(output / TRIALS, trials)
    best = trials[0]
    if best.error is not None:
        raise StageError(f"every trial failed; the first: {best.error}", remedy=f"see {output / TRIALS}")
    (output / BEST_RECIPE).write_text(dump_recipe(with_values(recipe, best.values)), encoding="utf8")
    shutil.rmtree(output / _STORAGE, ignore_errors=True)
    for number, trial in enumerate(trials, start=1):
        report(f"{number}. {trial}")
    return TuneResult(
        output=output,
        best_recipe=output / BEST_RECIPE,
        num_trials=len(trials),
        best=best,
        trials=tuple(trials),
        wall_s=round(time.perf_counter() - start_s, 3),
    )


def search_space(recipe: Recipe) -> dict[str, Distribution]:
    """Returns the recipe's search space, or its model's usual one.

    Raises:
        RecipeError: A key is unknown, a value is out of range, or there is nothing to search.
    """
    space = recipe.tune.space or recipe.model.default_space
    if not space:
        raise RecipeError(f"model {recipe.model.name!r} has nothing to search", remedy="name keys under [tune.space]")
    for key, distribution in space.items():
        for value in distribution.bounds():
            with_values(recipe, {key: value})
    return space


def run_trial(config: dict[str, Any], *, data: Path, recipe: Recipe) -> None:
    """Trains one recipe in this process and reports its best validation after each epoch to Tune."""
    chosen = with_values(recipe, config)
    set_threads(chosen.cluster, workers_on_node=recipe.tune.max_concurrent_trials)
    prepared = PreparedSet.open(data)
    validation = Validation.read(prepared, chosen)
    spec = MODELS[chosen.model.name]
    if spec.fit is not None:
        sums = validation.measure(spec.fit(prepared, chosen, SerialExecutor()))
        ray_tune.report({**sums.means(), "num_epochs": 0, "best_epoch": 0})
        return
    assert spec.build is not None
    feed = local_feed(prepared, chosen)
    trainer = Trainer(spec.build(prepared, chosen), chosen.train, steps_per_epoch=feed.plan.num_steps)

    def tell(*_: object) -> None:
        progress = trainer.progress
        metrics = {trainer.metric.label: math.inf if trainer.metric.is_error else 0.0} | progress.best_metrics
        ray_tune.report({**metrics, "num_epochs": progress.num_epochs, "best_epoch": progress.best_epoch})

    train_epochs(trainer, feed, validation, chosen.seed, tell)


def _fit(
    prepared: PreparedSet, output: Path, recipe: Recipe, space: dict[str, Distribution], report: Reporter
) -> ray_tune.ResultGrid:
    schedule, metric = recipe.tune, deciding_metric(recipe.train)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(partial(run_trial, data=prepared.path, recipe=recipe), {"cpu": 1}),
        param_space={key: _to_tune(distribution) for key, distribution in space.items()},
        tune_config=ray_tune.TuneConfig(
            metric=metric.label,
            mode="min" if metric.is_error else "max",
            num_samples=schedule.num_trials,
            search_alg=BasicVariantGenerator(max_concurrent=schedule.max_concurrent_trials, random_state=recipe.seed),
            scheduler=ASHAScheduler(
                time_attr="training_iteration",
                max_t=recipe.train.epochs,
                grace_period=min(schedule.grace_epochs, recipe.train.epochs),
                reduction_factor=schedule.reduction_factor,
            ),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name="tune", storage_path=str(output / _STORAGE), verbose=0, callbacks=[_TrialReporter(report)]
        ),
    )
    return tuner.fit()


def _to_tune(distribution: Distribution) -> Any:
    if isinstance(distribution, Choice):
        return ray_tune.choice(list(distribution.choice))
    if isinstance(distribution, Uniform):
        return ray_tune.uniform(*distribution.uniform)
    return ray_tune.loguniform(*distribution.log_uniform)


class _TrialReporter(ray_tune.Callback):
    """Reports each trial that ends."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._num_ended = 0

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._num_ended += 1
        self._report(f"trial {self._num_ended}: {_trial_of(trial.config, trial.last_result, None)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._num_ended += 1
        self._report(f"trial {self._num_ended} failed: {trial.config}")


def _trial_of(values: dict[str, Any], metrics: dict[str, Any] | None, error: Exception | None) -> Trial:
    metrics = metrics or {}
    names = ("Hit@10", "NDCG@10", "Recall@10", "MRR", "RMSE", "MAE")
    return Trial(
        values=values,
        num_epochs=metrics.get("num_epochs", 0),
        best_epoch=metrics.get("best_epoch", 0),
        metrics={name: metrics[name] for name in names if name in metrics},
        seconds=round(metrics.get("time_total_s", 0.0), 3),
        error=None if error is None else str(error).strip().splitlines()[-1],
    )


def _rank(trial: Trial, metric: DecidingMetric) -> float:
    """Returns a number that is lower for a better trial."""
    if trial.error is not None or metric.label not in trial.metrics:
        return math.inf
    value = trial.metrics[metric.label]
    return value if metric.is_error else -value


def _shown(value: Any) -> str:
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _write_table(path: Path, trials: list[Trial]) -> None:
    keys = list(trials[0].values)
    names = list(dict.fromkeys(name for trial in trials for name in trial.metrics))
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "num_epochs", "best_epoch", *names, "seconds", "error"])
        for trial in trials:
            values = [trial.values[key] for key in keys]
            metrics = [trial.metrics.get(name, "") for name in names]
            writer.writerow([*values, trial.num_epochs, trial.best_epoch, *metrics, trial.seconds, trial.error or ""])
