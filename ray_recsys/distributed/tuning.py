"""Ray Tune over recipe keys, with ASHA; the objective is the model's validation metric.

A trial (see `trial`) reserves `tune.workers_per_trial` workers; one each by default, since concurrent trials use a
machine better than data parallelism inside each. A trial that is lost with its node restarts, at most
`cluster.max_failures` times. A model that is fitted without epochs is a trial of one step.
"""

import importlib
import math
import time
from functools import partial
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe, with_values
from ray_recsys.config.space import Choice, Distribution, Uniform
from ray_recsys.core.models.fusion import branch_recipes
from ray_recsys.core.prepared import ITEMS, PreparedSet
from ray_recsys.core.training.lease import leased
from ray_recsys.core.training.run import (
    RECIPE,
    STARTED,
    RunStart,
    is_unfinished,
    read_start,
    start_of,
    start_run,
)
from ray_recsys.core.training.trainer import DecidingMetric, deciding_metric
from ray_recsys.core.training.trials import Trial, TuneResult, rank_of, write_trials
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.distributed.train_stage import ray_storage
from ray_recsys.distributed.trial import BEST_EPOCH, ERROR, NUM_EPOCHS, run_trial, trial_resources
from ray_recsys.distributed.trial_room import NoTrialRoom, require_trial_room
from ray_recsys.errors import ArtifactError, DataError, InputError, RecipeError, StageError
from ray_recsys.progress import Reporter, Warned, silent
from ray_recsys.reports.tune_html import write_html
from ray_recsys.storage.files import delete_file, delete_tree, exists, write_bytes, written_file
from ray_recsys.storage.location import Location, LocationLike

BEST_RECIPE = "best_recipe.toml"
TRIALS = "trials.csv"
REPORT = "report.html"
_STORAGE = "ray"
_NAME = "tune"


def tune(
    data: LocationLike, output: LocationLike, recipe: Recipe, *, resume: bool = False, report: Reporter = silent
) -> TuneResult:
    """Tries `tune.num_trials` recipes and writes the best one and a table of all.

    Args:
        data: A prepared set with validation interactions, in storage that all nodes reach.
        output: Directory to make.
        recipe: Space and schedule under [tune]; the rest is shared by all trials.
        resume: Finish the interrupted search at `output`; trials that were running restart.
        report: Gets a line per trial.

    Raises:
        ArtifactError: `output` exists, or cannot be resumed with this data and recipe, or `data` cannot be read.
        ClusterError: No CPU is free.
        DataError: The prepared set has no validation interactions.
        InputError: `tune.search` needs a package that is not installed.
        RecipeError: A key of the space is unknown, a value is out of range, or there is nothing to search.
        StageError: No trial has a result, and nothing is left at `output`; or the cluster has had no room for a trial
            for `cluster.start_timeout_s`, and the search can be resumed.
    """
    start_s = time.perf_counter()
    space, searcher = search_space(recipe), _searcher(recipe)
    prepared = PreparedSet.open(data)
    if not prepared.manifest.num_validation:
        raise DataError(f"{data} has no validation interactions to choose by", remedy="prepare it with another [split]")
    output, start = Location.of(output), start_of(prepared, recipe)
    if resume:
        _check_resumable(output, start)
    elif exists(output):
        start_run(output, start)  # refuses it, before the data are read
    prepared.verify(ITEMS)  # trials check the partitions that they read
    require_cpu("tune", recipe.cluster, report=report)
    require_trial_room(recipe, report)
    if not resume:
        start_run(output, start)
    with leased(output):
        report(f"{recipe.tune.num_trials} trials of {', '.join(space)}, {recipe.tune.max_concurrent_trials} at a time")
        trials = _trials_of(
            _fit(prepared, output, recipe, space, searcher, report=report), deciding_metric(recipe.train)
        )
        best = trials[0]
        if math.isinf(rank_of(best, deciding_metric(recipe.train))):
            delete_tree(output)
            raise StageError(f"no trial has a result; the first: {best.error or 'the time was over before an epoch'}")
        _write_result(output, trials, recipe, report)
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


def _write_result(output: Location, trials: list[Trial], recipe: Recipe, report: Reporter) -> None:
    """Writes the best recipe, the table and the report, and deletes what only a search under way needs."""
    with written_file(output / TRIALS) as path:
        write_trials(path, trials)
    write_bytes(output / BEST_RECIPE, dump_recipe(with_values(recipe, trials[0].values)).encode())
    _write_report(output / REPORT, trials, recipe, report)
    for name in (STARTED, RECIPE):
        delete_file(output / name)
    delete_tree(output / _STORAGE)


def _write_report(file: Location, trials: list[Trial], recipe: Recipe, report: Reporter) -> None:
    """Writes the page of a search; says why if plots are not possible here."""
    try:
        write_html(trials, deciding_metric(recipe.train).label, recipe.train.epochs, file)
    except InputError as error:
        report(f"no {file.name}: {error}")


def _check_resumable(output: Location, start: RunStart) -> None:
    if not is_unfinished(output):
        raise ArtifactError(f"{output} holds no interrupted search", remedy="search again without --resume")
    before = read_start(output)
    shared = {"cluster": start.recipe.cluster}  # which may change
    if before.model_copy(update={"recipe": before.recipe.model_copy(update=shared)}) != start:
        raise ArtifactError(
            f"{output} started with other data or another recipe",
            remedy=f"resume with the same --data and --recipe {output / RECIPE}, or search into another directory",
        )


def _trials_of(grid: ray_tune.ResultGrid, metric: DecidingMetric) -> list[Trial]:
    """Returns the trials, best first."""
    trials = []
    for number in range(len(grid)):
        result = grid[number]
        frame: Any = result.metrics_dataframe
        curve: tuple[float, ...] = ()
        if frame is not None and metric.label in frame:
            once = frame.drop_duplicates(NUM_EPOCHS, keep="last")  # a restarted trial reports epochs again
            curve = tuple(float(value) for value in once[metric.label])
        trials.append(_trial_of(result.config or {}, result.metrics, result.error).model_copy(update={"curve": curve}))
    return sorted(trials, key=lambda trial: rank_of(trial, metric))


def _searcher(recipe: Recipe) -> Any:
    """Returns the search algorithm of the recipe.

    Raises:
        InputError: It needs a package that is not installed.
    """
    if recipe.tune.search == "random":
        return BasicVariantGenerator(max_concurrent=recipe.tune.max_concurrent_trials, random_state=recipe.seed)
    try:
        importlib.import_module("optuna")
    except ImportError as error:
        raise InputError(
            f"tune.search = 'tpe' needs Optuna ({error})", remedy="run: pip install 'ray-recsys[tune]'"
        ) from error
    return OptunaSearch(seed=recipe.seed % 2**32)  # numpy takes no larger one


def search_space(recipe: Recipe) -> dict[str, Distribution]:
    """Returns the recipe's search space, or its model's usual one.

    Raises:
        RecipeError: A key is unknown, a value is out of range, or there is nothing to search.
    """
    space = recipe.tune.space or recipe.model.default_space
    if not space:
        raise RecipeError(f"model {recipe.model.name!r} has nothing to search", remedy="name keys under [tune.space]")
    if branch_recipes(recipe):
        raise RecipeError(
            "tune does not pre-train NeuMF's branches (model.pretrain)",
            remedy="tune a branch as a separate model, e.g. --set model.name=mf, and NeuMF without model.pretrain",
        )
    for key, distribution in space.items():
        for value in distribution.bounds():
            with_values(recipe, {key: value})
    return space


def _fit(
    prepared: PreparedSet,
    output: Location,
    recipe: Recipe,
    space: dict[str, Distribution],
    searcher: Any,
    *,
    report: Reporter,
) -> ray_tune.ResultGrid:
    schedule, metric = recipe.tune, deciding_metric(recipe.train)
    trainable = ray_tune.with_resources(
        partial(run_trial, data=prepared.location, recipe=recipe), trial_resources(recipe)
    )
    param_space = {key: _to_tune(distribution) for key, distribution in space.items()}
    storage = ray_storage(output / _STORAGE)
    path, filesystem = f"{storage['storage_path']}/{_NAME}", storage.get("storage_filesystem")
    if ray_tune.Tuner.can_restore(path, filesystem):
        tuner = ray_tune.Tuner.restore(
            path, trainable, resume_errored=True, param_space=param_space, storage_filesystem=filesystem
        )
        assert tuner._local_tuner is not None
        tuner._local_tuner.get_run_config().callbacks = [_TrialReporter(report)]  # not the one of the killed driver
        return tuner.fit()
    tuner = ray_tune.Tuner(
        trainable,
        param_space=param_space,
        tune_config=ray_tune.TuneConfig(
            metric=metric.label,
            mode="min" if metric.is_error else "max",
            num_samples=schedule.num_trials,
            max_concurrent_trials=schedule.max_concurrent_trials if schedule.search != "random" else None,
            time_budget_s=schedule.max_time_s,
            search_alg=searcher,
            scheduler=ASHAScheduler(
                time_attr="training_iteration",
                max_t=recipe.train.epochs,
                grace_period=min(schedule.grace_epochs, recipe.train.epochs),
                reduction_factor=schedule.reduction_factor,
            ),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name=_NAME,
            verbose=0,
            callbacks=[_TrialReporter(report)],
            failure_config=ray_tune.FailureConfig(max_failures=recipe.cluster.max_failures),
            stop=NoTrialRoom(recipe, output),
            **storage,
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
    """Reports each trial that ends, or that restarts after a loss."""

    def __init__(self, report: Reporter) -> None:
        self._report = report
        self._num_ended = 0

    def __reduce__(self) -> tuple[Any, ...]:
        """Tune keeps its callbacks in a file; a reporter may hold a terminal, which cannot be kept."""
        return type(self), (silent,)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._report(Warned(f"a trial was lost and restarts: {trial.config}"))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._num_ended += 1
        self._report(f"trial {self._num_ended}: {_trial_of(trial.config, trial.last_result, None)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        self._num_ended += 1
        self._report(Warned(f"trial {self._num_ended} failed: {trial.config}"))


def _trial_of(values: dict[str, Any], metrics: dict[str, Any] | None, error: Exception | None) -> Trial:
    metrics = metrics or {}
    names = ("Hit@10", "NDCG@10", "Recall@10", "MRR", "RMSE", "MAE")
    return Trial(
        values=values,
        num_epochs=metrics.get(NUM_EPOCHS, 0),
        best_epoch=metrics.get(BEST_EPOCH, 0),
        metrics={name: metrics[name] for name in names if name in metrics},
        seconds=round(metrics.get("time_total_s", 0.0), 3),
        error=metrics.get(ERROR) if error is None else str(error).strip().splitlines()[-1],
    )
