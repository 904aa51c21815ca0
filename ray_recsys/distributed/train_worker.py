"""What each Ray Train worker runs: DDP around the model, the epochs, a checkpoint after each.

Gradients go over gloo between CPUs and over NCCL between GPUs. The driver's side is `training`.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.checkpoint import load_checkpoint, save_checkpoint, write_curves
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.run import CURVES
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.distributed.cluster import configure_data
from ray_recsys.distributed.feed import worker_feed
from ray_recsys.distributed.progress_channel import ProgressSender
from ray_recsys.distributed.resources import FeedResources
from ray_recsys.errors import RecsysError
from ray_recsys.progress import EpochFinished


class WorkerArgs(BaseModel):
    """What the driver tells its workers."""

    model_config = ConfigDict(frozen=True)

    data: Path
    run: Path
    recipe: Recipe
    resources: FeedResources
    refit_epochs: int | None = None
    """Epochs of a refit on everything; None: training, with validation."""


def train_worker(config: dict[str, Any]) -> Any:
    """Trains until done, from the latest checkpoint if there is one.

    Returns:
        None, or a deterministic error, returned rather than raised so that Ray Train does not retry it.
    """
    configure_data()
    args = WorkerArgs.model_validate(config["args"])
    progress: ProgressSender = config["progress"]
    prepared = PreparedSet.open(args.data)
    if args.refit_epochs is not None:
        prepared = prepared.with_held_out()
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    set_threads(args.recipe.cluster, workers_on_node=context.get_local_world_size())
    spec = MODELS[args.recipe.model.name]
    assert spec.build is not None
    feed = worker_feed(prepared, args.recipe, args.resources, rank=rank, world_size=world_size)
    trainer = Trainer(
        spec.build(prepared, args.recipe),
        args.recipe.train,
        steps_per_epoch=feed.plan.num_steps,
        num_epochs=args.refit_epochs,
        device=ray.train.torch.get_device(),
        wrap=data_parallel,
    )
    validation = Validation.read(prepared, args.recipe, rank=rank, world_size=world_size)
    with tempfile.TemporaryDirectory(prefix="best-model-") as best:
        try:
            if (checkpoint := ray.train.get_checkpoint()) is not None:
                with checkpoint.as_directory() as directory:
                    load_checkpoint(trainer, Path(directory), Path(best))
            if rank == 0:
                progress.start(trainer.progress.num_epochs)
            curves = args.run / CURVES if args.refit_epochs is None else None
            on_epoch = _EpochReporter(trainer, rank, curves, Path(best), progress)
            train_epochs(trainer, feed, validation, args.recipe.seed, on_epoch)
        except RecsysError as error:
            return error
        finally:
            feed.close()
    return None


def set_threads(cluster: ClusterRecipe, *, workers_on_node: int) -> None:
    """Sets this process's torch threads, by default to its share of the node's cores."""
    share = len(os.sched_getaffinity(0)) // workers_on_node
    torch.set_num_threads(cluster.threads_per_worker or max(1, share))
    torch.set_flush_denormal(True)  # Adam's averages of rarely touched rows decay into denormals, which are slow


@dataclass(frozen=True, slots=True)
class _EpochReporter:
    """Reports each epoch to Ray Train; the first worker with a checkpoint, and to the driver's progress."""

    trainer: Trainer
    rank: int
    curves: Path | None
    best: Path
    """Directory that holds the best epoch's model."""
    progress: ProgressSender

    def __call__(self, record: EpochRecord, _: bool) -> None:
        checkpoint = None
        if self.rank == 0:
            directory = Path(tempfile.mkdtemp(prefix="checkpoint-"))
            save_checkpoint(self.trainer, directory, self.best)
            checkpoint = ray.train.Checkpoint.from_directory(directory)
            if self.curves is not None:
                write_curves(self.curves, self.trainer.progress.records)
            self.progress.send(self._event(record))
        ray.train.report(
            {"epoch": record.epoch},
            checkpoint=checkpoint,
            checkpoint_dir_name=f"epoch-{record.epoch:05d}",
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # it deletes the directory afterwards
        )

    def _event(self, record: EpochRecord) -> EpochFinished:
        label = self.trainer.metric.label
        return EpochFinished(
            epoch=record.epoch,
            num_epochs=self.trainer.recipe.epochs,
            loss=record.loss,
            samples_per_s=record.samples_per_s,
            metric=label if label in record.metrics else None,
            value=record.metrics.get(label, 0.0),
        )
