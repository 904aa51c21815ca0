"""What each Ray Train worker runs: DDP around the model, the epochs, a checkpoint after each.

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

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.checkpoint import load_checkpoint, save_checkpoint, write_curves
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.run import CURVES
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.distributed.feed import worker_feed
from ray_recsys.errors import RecsysError


class WorkerArgs(BaseModel):
    """What the driver tells its workers."""

    model_config = ConfigDict(frozen=True)

    data: Path
    run: Path
    recipe: Recipe


def train_worker(config: dict[str, object]) -> Any:
    """Trains until done, from the latest checkpoint if there is one.

    Returns:
        None, or a deterministic error, returned rather than raised so that Ray Train does not retry it.
    """
    args = WorkerArgs.model_validate(config)
    prepared = PreparedSet.open(args.data)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    set_threads(args.recipe.cluster, workers_on_node=context.get_local_world_size())
    spec = MODELS[args.recipe.model.name]
    assert spec.build is not None
    trainer = Trainer(
        spec.build(prepared, args.recipe),
        args.recipe.train,
        device=ray.train.torch.get_device(),
        wrap=data_parallel,
    )
    feed = worker_feed(prepared, args.recipe, rank=rank, world_size=world_size)
    validation = Validation.read(prepared, args.recipe, rank=rank, world_size=world_size)
    with tempfile.TemporaryDirectory(prefix="best-model-") as best:
        try:
            if (checkpoint := ray.train.get_checkpoint()) is not None:
                with checkpoint.as_directory() as directory:
                    load_checkpoint(trainer, Path(directory), Path(best))
            train_epochs(
                trainer,
                feed,
                validation,
                args.recipe.seed,
                lambda record, _: _report(trainer, record, rank, args.run, Path(best)),
            )
        except RecsysError as error:
            return error
    return None


def set_threads(cluster: ClusterRecipe, *, workers_on_node: int) -> None:
    """Sets this process's torch threads, by default to its share of the node's cores."""
    share = len(os.sched_getaffinity(0)) // workers_on_node
    torch.set_num_threads(cluster.threads_per_worker or max(1, share))
    torch.set_flush_denormal(True)  # Adam's averages of rarely touched rows decay into denormals, which are slow


def _report(trainer: Trainer, record: EpochRecord, rank: int, run: Path, best: Path) -> None:
    checkpoint = None
    if rank == 0:
        directory = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        save_checkpoint(trainer, directory, best)
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        write_curves(run / CURVES, trainer.progress.records)
    ray.train.report(
        {"epoch": record.epoch},
        checkpoint=checkpoint,
        checkpoint_dir_name=f"epoch-{record.epoch:05d}",
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # it deletes the directory afterwards
    )
