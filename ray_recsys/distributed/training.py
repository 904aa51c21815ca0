"""Trains a model on a prepared set with Ray Train; the driver's side.

The run's directory always has what is needed to resume: a lost worker is replaced from the latest checkpoint, and after
a lost driver `resume` continues. What a worker does is in `train_worker`.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training import checkpoint as checkpoints
from ray_recsys.core.training.checkpoint import newest_checkpoint, read_progress
from ray_recsys.core.training.curves import write_curves, write_plot
from ray_recsys.core.training.run import (
    CURVES,
    CURVES_PLOT,
    LAST,
    MODEL,
    RAY_STORAGE,
    Run,
    RunManifest,
    TrainResult,
    can_resume,
    check_refit,
    finish_run,
    is_unfinished,
    leased,
    read_start,
    start_of,
    start_run,
)
from ray_recsys.core.training.trainer import Progress
from ray_recsys.core.training.warm_start import WarmStart
from ray_recsys.core.workflows.fit import fit
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.distributed.progress_channel import progress_channel
from ray_recsys.distributed.resources import require_workers
from ray_recsys.distributed.train_errors import explain_failure
from ray_recsys.distributed.train_worker import WorkerArgs, train_worker
from ray_recsys.errors import RecsysError, StageError
from ray_recsys.progress import Reporter, Warned, silent
from ray_recsys.trackers.tracker import tracked

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # read by Ray's controller
_START_ATTEMPTS = 2


def train(
    data: Path,
    output: Path,
    recipe: Recipe,
    executor: Executor,
    *,
    resume: bool = False,
    warm_start: Path | None = None,
    report: Reporter = silent,
) -> TrainResult:
    """Trains the recipe's model, whichever it is, and leaves a finished run.

    Args:
        data: A prepared set, on storage that all workers see.
        output: The run to write, on storage that all workers see.
        recipe: Model, feed, train, cluster and seed.
        executor: For models that are fitted without epochs.
        resume: Resume the unfinished run at `output`; a finished one is left as it is.
        warm_start: Bundle whose weights a new run begins with; a resumed run keeps its own.
        report: Gets an event per epoch.

    Raises:
        ArtifactError: `output` exists, or cannot be resumed with this data and recipe, or `data` or the bundle cannot
            be read or do not fit the recipe.
        InputError: `warm_start` for a model that is fitted without epochs.
        ClusterError: The cluster has too few CPUs or GPUs.
        RecipeError: A refit would train on a given test.
        StageError: Training failed or diverged.
    """
    prepared = PreparedSet.open(data)
    start = None if warm_start is None else WarmStart.open(warm_start, recipe)
    if MODELS[recipe.model.name].fit is not None:
        return _fit_tracked(prepared, output, recipe, executor, resume=resume, report=report)
    return train_by_gradient(prepared, output.absolute(), recipe, resume=resume, warm_start=start, report=report)


def refit(
    finished: Path, data: Path, output: Path, cluster: ClusterRecipe, executor: Executor, *, report: Reporter = silent
) -> TrainResult:
    """Trains a finished run's model again on everything, held-out interactions included, into a new run.

    Args:
        finished: The run whose recipe and number of epochs are used.
        data: The prepared set that it was trained on.
        output: The run to write.
        cluster: Workers of the new run.
        executor: For models that are fitted without epochs.
        report: Gets an event per epoch.

    Raises:
        ArtifactError: `output` exists, or run or data cannot be used or do not belong together.
        ClusterError: The cluster has too few CPUs or GPUs.
        StageError: Training failed or diverged.
    """
    prepared, run = PreparedSet.open(data), Run.open(finished)
    TrainedModel.open(finished).check_fits(prepared)
    trained = run.manifest.recipe
    recipe = trained.model_copy(update={"train": trained.train.model_copy(update={"refit": True}), "cluster": cluster})
    if MODELS[recipe.model.name].fit is not None:
        return _fit_tracked(prepared, output, recipe, executor, resume=False, report=report)
    chosen, start = read_progress(run.path / LAST), run.manifest.warm_start
    return train_by_gradient(
        prepared, output.absolute(), recipe, resume=False, warm_start=start, report=report, chosen=chosen
    )


def _fit_tracked(
    prepared: PreparedSet, output: Path, recipe: Recipe, executor: Executor, *, resume: bool, report: Reporter
) -> TrainResult:
    is_new = not resume or is_unfinished(output)
    result = fit(prepared, output, recipe, executor, resume=resume, report=report)
    if is_new:
        with tracked(result.run, recipe, report) as tracking:
            tracking.finish(result.metrics)
    return result


def train_by_gradient(
    prepared: PreparedSet,
    output: Path,
    recipe: Recipe,
    *,
    resume: bool,
    report: Reporter,
    warm_start: WarmStart | None = None,
    chosen: Progress | None = None,
) -> TrainResult:
    """Trains until early stopping or the last epoch; see `train`.

    Args:
        prepared: The prepared set.
        output: The run to write, an absolute path.
        recipe: Model, feed, train, cluster and seed.
        resume: Resume the unfinished run at `output`.
        report: Gets an event per epoch.
        warm_start: What a new run begins with.
        chosen: Progress of a training that has chosen the number of epochs; only the refit is left to do.
    """
    start_s = time.perf_counter()
    check_refit(prepared, recipe)
    start = start_of(prepared, recipe, warm_start)
    if resume and not can_resume(output, start):
        report(f"the run at {output} is finished already")
        return TrainResult.of(output, Run.open(output).manifest, start_s)
    prepared.verify()
    resources = require_workers(recipe.cluster, report=report)  # before anything is written
    if resume:
        report(f"resuming the run at {output}")
    else:
        start_run(output, start)
    with leased(output):
        if not is_unfinished(output):  # by another process, while this one waited for nothing
            return TrainResult.of(output, Run.open(output).manifest, start_s)
        started = read_start(output)
        if started.warm_start is not None and started.warm_start.refit and chosen is None:
            report(
                Warned(f"{started.warm_start.version} was refit: it has seen held-out items, validation is too good")
            )
        args = WorkerArgs(
            data=prepared.path, run=output, recipe=recipe, resources=resources, warm_start=started.warm_start
        )
        with tracked(output, recipe, report) as tracking:
            manifest = _train_and_export(args, chosen, tracking)
            tracking.finish(manifest.metrics)
    return TrainResult.of(output, manifest, start_s)


def _train_and_export(args: WorkerArgs, chosen: Progress | None, report: Reporter) -> RunManifest:
    """Trains, and refits if the recipe says so; makes a finished run of the result."""
    recipe, output = args.recipe, args.run
    if chosen is None:
        checkpoint = _fit(args, report)
        progress = read_progress(checkpoint)
        best = ", ".join(f"{name} {value:.4f}" for name, value in progress.best_metrics.items()) or "no validation"
        report(f"{progress.num_epochs} epochs, best {progress.best_epoch}: {best}")
    else:
        progress = chosen
    if recipe.train.refit:
        report(f"refitting on everything for {progress.best_epoch} epochs, held-out interactions included")
        checkpoint = _fit(args.model_copy(update={"refit_epochs": progress.best_epoch}), report)
    return _export(checkpoint, progress, output, is_refit=recipe.train.refit)


_V2: Any = ray.train
"""Ray replaces its classes by those of Train V2 when it is imported; a type checker sees the old ones."""


class _Trainer(ray.train.torch.TorchTrainer):
    """Ray's trainer without two processes of which nothing here has use, and for which its workers would wait.

    One would split Train's own datasets. The other would remove the placement group of a lost controller, which Ray
    does anyway when the driver ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        default: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # of Train V2
        return [callback for callback in default if not isinstance(callback, unused)]


def _fit(args: WorkerArgs, report: Reporter) -> Path:
    """Runs Ray Train to the end; returns the last checkpoint, whose every file was checked.

    Each attempt has a storage of its own: what a killed one was writing is never read as Ray's own state.
    """
    cluster = args.recipe.cluster
    report(f"starting {cluster.num_workers} workers")
    get_or_create_autoscaling_coordinator()  # starts while the controller does, which would start it and wait
    with progress_channel(report) as progress, _start_timeout(cluster):
        trainer = _Trainer(
            train_worker,
            train_loop_config={"args": args.model_dump(), "progress": progress},
            scaling_config=_V2.ScalingConfig(
                num_workers=(cluster.min_workers, cluster.num_workers) if cluster.min_workers else cluster.num_workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"{args.stage}-{len(args.checkpoint_roots()) + 1:04d}",
                storage_path=str(args.run / RAY_STORAGE),
                failure_config=_V2.FailureConfig(
                    max_failures=cluster.max_failures,
                    controller_failure_limit=-1 if cluster.wait_for_nodes else _START_ATTEMPTS - 1,
                ),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise explain_failure(error, args.recipe.cluster, args.run) from error
    outcome = getattr(result, "return_value", None)
    if isinstance(outcome, RecsysError):
        raise outcome
    checkpoint, damaged = newest_checkpoint(args.checkpoint_roots())
    if damaged:
        raise StageError(f"training is done, but {damaged[0].message}", remedy="repeat the rest with --resume")
    assert checkpoint is not None
    return checkpoint


@contextmanager
def _start_timeout(cluster: ClusterRecipe) -> Iterator[None]:
    """Makes Ray's controller give each attempt to start workers its share of the recipe's timeout.

    The first attempt after a loss may still count the lost node and so wait in vain.
    """
    before = os.environ.get(_START_TIMEOUT)
    os.environ[_START_TIMEOUT] = str(cluster.start_timeout_s / _START_ATTEMPTS)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_START_TIMEOUT]
        else:
            os.environ[_START_TIMEOUT] = before


def _export(checkpoint: Path, progress: Progress, output: Path, *, is_refit: bool) -> RunManifest:
    """Makes a run of the last checkpoint; Ray's storage goes last, so that a kill in between can be resumed."""
    for name in (MODEL, LAST):
        shutil.rmtree(output / name, ignore_errors=True)
    shutil.copytree(checkpoint, output / LAST, ignore=shutil.ignore_patterns(checkpoints.BEST, ".*"))
    shutil.copytree(checkpoint / checkpoints.BEST, output / MODEL)
    write_curves(output / CURVES, progress.records)
    write_plot(output / CURVES_PLOT, progress.records)
    manifest = finish_run(
        output,
        num_epochs=progress.num_epochs,
        best_epoch=progress.best_epoch,
        metrics=progress.best_metrics,
        refit=is_refit,
    )
    shutil.rmtree(output / RAY_STORAGE)
    return manifest
