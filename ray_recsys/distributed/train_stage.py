"""One stage of a training, run by Ray Train to its end: a branch, the whole model, or the refit of one.

Stages and their order are in `training`; what a worker does is in `train_worker`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from ray_recsys.config import ClusterRecipe
from ray_recsys.core.training.checkpoint import newest_checkpoint, read_progress
from ray_recsys.core.training.run import RAY_STORAGE
from ray_recsys.core.training.trainer import is_done
from ray_recsys.distributed.process_group import TorchGroup
from ray_recsys.distributed.progress_channel import progress_channel
from ray_recsys.distributed.train_errors import explain_failure
from ray_recsys.distributed.train_worker import WorkerArgs, train_worker
from ray_recsys.errors import RecsysError, StageError
from ray_recsys.progress import Reporter
from ray_recsys.storage.location import Location

_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"  # read by Ray's controller
_START_ATTEMPTS = 2

_V2: Any = ray.train
"""Ray replaces its classes by those of Train V2 when it is imported; a type checker sees the old ones."""


class _Trainer(DataParallelTrainer):
    """Ray's trainer without two unneeded processes that its workers would wait for.

    One would split Train's own datasets. The other would remove the placement group of a lost controller, which Ray
    does anyway when the driver ends.
    """

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, PlacementGroupCleanerCallback)
        default: list[Any] = super()._create_default_callbacks()
        return [callback for callback in default if not isinstance(callback, unused)]


def run_stage(args: WorkerArgs, report: Reporter) -> Location:
    """Runs Ray Train to the end, unless an earlier attempt did; returns the last checkpoint, its files checked.

    Each attempt has its own storage, so that partial writes of a killed one are never read as Ray's state.

    Raises:
        RecsysError: The worker's own error, if it is one.
        StageError: Training failed, or its last checkpoint is damaged.
    """
    cluster = args.recipe.cluster
    if (finished := _finished(args)) is not None:
        return finished
    report(f"starting {cluster.num_workers} workers")
    get_or_create_autoscaling_coordinator()  # starts while the controller does, which would start it and wait
    with progress_channel(report) as progress, _start_timeout(cluster):
        trainer = _Trainer(
            train_worker,
            backend_config=TorchGroup(cluster.use_gpu),
            train_loop_config={"args": args.model_dump(), "progress": progress},
            scaling_config=_V2.ScalingConfig(
                num_workers=(cluster.min_workers, cluster.num_workers) if cluster.min_workers else cluster.num_workers,
                use_gpu=cluster.use_gpu,
                resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"{args.stage}-{len(args.checkpoint_roots()) + 1:04d}",
                **ray_storage(args.run / RAY_STORAGE),
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
    if args.refit_epochs is None:
        done = read_progress(checkpoint)
        best = ", ".join(f"{name} {value:.4f}" for name, value in done.best_metrics.items()) or "no validation"
        report(f"{done.num_epochs} epochs, best {done.best_epoch}: {best}")
    return checkpoint


def _finished(args: WorkerArgs) -> Location | None:
    """Returns the last checkpoint of a stage that an earlier attempt finished; None if something is left to do."""
    checkpoint, damaged = newest_checkpoint(args.checkpoint_roots())
    if checkpoint is None or damaged:
        return None
    progress = read_progress(checkpoint)
    is_finished = not progress.partial.num_steps and is_done(progress, args.recipe.train, args.refit_epochs)
    return checkpoint if is_finished else None


def ray_storage(location: Location) -> dict[str, Any]:
    """Returns what tells Ray's RunConfig to keep its files at a location."""
    if location.is_local:
        return {"storage_path": str(location)}
    filesystem, path = location.resolve()
    return {"storage_path": path, "storage_filesystem": filesystem}


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
