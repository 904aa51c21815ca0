"""Trains a model on a prepared set with Ray Train; the driver's side.

The run's directory always has what is needed to resume: a lost worker is replaced from the latest checkpoint, and after
a lost driver `resume` continues. What a worker does is in `train_worker`.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch

from ray_recsys.config import Recipe
from ray_recsys.core.executor import Executor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training import checkpoint as checkpoints
from ray_recsys.core.training.checkpoint import read_progress, verify_checkpoint, write_curves
from ray_recsys.core.training.run import (
    CURVES,
    LAST,
    MODEL,
    RAY_STORAGE,
    Run,
    RunManifest,
    TrainResult,
    can_resume,
    finish_run,
    start_of,
    start_run,
)
from ray_recsys.core.workflows.fit import fit
from ray_recsys.distributed.feed import Feed, make_feed
from ray_recsys.distributed.train_worker import WorkerArgs, train_worker
from ray_recsys.distributed.training_progress import watching
from ray_recsys.errors import RecsysError, StageError
from ray_recsys.progress import Reporter, silent


def train(
    data: Path, output: Path, recipe: Recipe, executor: Executor, *, resume: bool = False, report: Reporter = silent
) -> TrainResult:
    """Trains the recipe's model, whichever it is, and leaves a finished run.

    Args:
        data: A prepared set, on storage that all workers see.
        output: The run to write, on storage that all workers see.
        recipe: Model, feed, train, cluster and seed.
        executor: For models that are fitted without epochs.
        resume: Resume the unfinished run at `output`; a finished one is left as it is.
        report: Gets an event per epoch.

    Raises:
        ArtifactError: `output` exists, or cannot be resumed with this data and recipe, or `data` cannot be read.
        ClusterError: The cluster has too few CPUs or GPUs.
        StageError: Training failed or diverged.
    """
    prepared = PreparedSet.open(data)
    if MODELS[recipe.model.name].fit is not None:
        return fit(prepared, output, recipe, executor, resume=resume, report=report)
    return train_by_gradient(prepared, output.absolute(), recipe, resume=resume, report=report)


def train_by_gradient(
    prepared: PreparedSet, output: Path, recipe: Recipe, *, resume: bool, report: Reporter
) -> TrainResult:
    """Trains until early stopping or the last epoch; see `train`."""
    start_s = time.perf_counter()
    start = start_of(prepared, recipe)
    if resume and not can_resume(output, start):
        report(f"the run at {output} is finished already")
        return TrainResult.of(output, Run.open(output).manifest, start_s)
    prepared.verify()
    feed = make_feed(prepared, recipe, report=report)  # before anything is written: it refuses too small a cluster
    if resume:
        report(f"resuming the run at {output}")
    else:
        start_run(output, start)
    checkpoint = _fit(feed, WorkerArgs(data=prepared.path, run=output, recipe=recipe), report)
    manifest = _export(checkpoint, output)
    best = ", ".join(f"{name} {value:.4f}" for name, value in manifest.metrics.items()) or "no validation"
    report(f"{manifest.num_epochs} epochs, best {manifest.best_epoch}: {best}")
    return TrainResult.of(output, manifest, start_s)


def _fit(feed: Feed, args: WorkerArgs, report: Reporter) -> Path:
    """Runs Ray Train to the end; returns the last checkpoint."""
    cluster = args.recipe.cluster
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=args.model_dump(),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=str(args.run / RAY_STORAGE),
            failure_config=ray.train.FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
        datasets=dict(feed.datasets),
        dataset_config=feed.data_config,
    )
    report(f"starting {cluster.num_workers} workers")
    try:
        with watching(args.run / CURVES, report):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explain(error) from error
    outcome = getattr(result, "return_value", None)
    if isinstance(outcome, RecsysError):
        raise outcome
    assert result.checkpoint is not None
    return Path(result.checkpoint.path)


def _explain(error: ray.train.TrainingFailedError) -> RecsysError:
    """Returns the worker's own error, without Ray's layers around it."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        cause: Any = failure
        while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
            cause = inner
        if isinstance(cause, RecsysError):
            return cause
        text = str(cause).strip().splitlines()
        return StageError(f"training failed on worker {rank}: {type(cause).__name__}: {text[-1] if text else ''}")
    return StageError(f"training failed: {error}")


def _export(checkpoint: Path, output: Path) -> RunManifest:
    """Makes a run of the last checkpoint; Ray's storage goes last, so that a kill in between can be resumed."""
    verify_checkpoint(checkpoint)
    progress = read_progress(checkpoint)
    for name in (MODEL, LAST):
        shutil.rmtree(output / name, ignore_errors=True)
    shutil.copytree(checkpoint, output / LAST, ignore=shutil.ignore_patterns(checkpoints.BEST, ".*"))
    shutil.copytree(checkpoint / checkpoints.BEST, output / MODEL)
    write_curves(output / CURVES, progress.records)
    manifest = finish_run(
        output, num_epochs=progress.num_epochs, best_epoch=progress.best_epoch, metrics=progress.best_metrics
    )
    shutil.rmtree(output / RAY_STORAGE)
    return manifest
