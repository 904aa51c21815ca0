"""What each Ray Train worker runs: DDP around the objective, the epochs, a checkpoint after each.

Gradients go over gloo between CPUs and over NCCL between GPUs. The driver's side is `training`.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from pydantic import BaseModel, ConfigDict
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ray_recsys.config import Recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.checkpoint import load_checkpoint, save_checkpoint, write_curves
from ray_recsys.core.training.epochs import sum_gradients, train_epochs
from ray_recsys.core.training.learner import METRIC, EpochRecord, Learner
from ray_recsys.core.training.run import CURVES
from ray_recsys.core.training.validation import Validation
from ray_recsys.distributed.feed import worker_feed
from ray_recsys.distributed.progress_channel import ProgressSender
from ray_recsys.distributed.resources import FeedResources
from ray_recsys.errors import RecsysError
from ray_recsys.progress import EpochFinished

_ONE_BUCKET_MB = 1 << 20


class WorkerArgs(BaseModel):
    """What the driver tells its workers."""

    model_config = ConfigDict(frozen=True)

    data: Path
    run: Path
    recipe: Recipe
    resources: FeedResources


def train_worker(config: dict[str, Any]) -> Any:
    """Trains until done, from the latest checkpoint if there is one.

    Returns:
        None, or an error that all workers meet alike; raised, it would be met again after each restart.
    """
    args = WorkerArgs.model_validate(config["args"])
    progress: ProgressSender = config["progress"]
    prepared = PreparedSet.open(args.data)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    set_threads(args.recipe, workers_on_node=context.get_local_world_size())
    learner = Learner(
        args.recipe,
        prepared.manifest.num_users,
        prepared.manifest.num_items,
        device=ray.train.torch.get_device(),
        wrap=_data_parallel,
    )
    feed = worker_feed(prepared, args.recipe, args.resources, rank=rank, world_size=world_size)
    validation = Validation.read(prepared, args.recipe, rank=rank, world_size=world_size)
    try:
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as directory:
                load_checkpoint(learner, Path(directory))
        if rank == 0:
            progress.start(learner.progress.num_epochs)
        train_epochs(learner, feed, validation, lambda record: _report(learner, record, rank, args.run, progress))
    except RecsysError as error:
        return error
    finally:
        feed.close()
    return None


def set_threads(recipe: Recipe, *, workers_on_node: int) -> None:
    """Sets this process's torch threads, by default to its share of the node's cores."""
    share = len(os.sched_getaffinity(0)) // workers_on_node
    torch.set_num_threads(recipe.cluster.threads_per_worker or max(1, share))
    torch.set_flush_denormal(True)  # Adam's averages of rarely touched rows decay into denormals, which are slow


def _data_parallel(module: nn.Module) -> nn.Module:
    # One bucket: on CPU nothing overlaps with the backward pass, and each further one costs a round trip.
    options = {"gradient_as_bucket_view": True, "bucket_cap_mb": _ONE_BUCKET_MB}
    wrapped: nn.Module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=options)
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.register_comm_hook(None, lambda _, bucket: sum_gradients(bucket))
    return wrapped


def _report(learner: Learner, record: EpochRecord, rank: int, run: Path, progress: ProgressSender) -> None:
    checkpoint = None
    if rank == 0:
        directory = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        save_checkpoint(learner, directory)
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        write_curves(run / CURVES, learner.progress.records)
        progress.send(
            EpochFinished(
                epoch=record.epoch,
                num_epochs=learner.recipe.train.epochs,
                loss=record.loss,
                samples_per_s=record.samples_per_s,
                metric=METRIC if METRIC in record.metrics else None,
                value=record.metrics.get(METRIC, 0.0),
            )
        )
    ray.train.report(
        {"epoch": record.epoch},
        checkpoint=checkpoint,
        checkpoint_dir_name=f"epoch-{record.epoch:05d}",
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # it deletes the directory afterwards
    )
