"""Ray Train worker: DDP around the model, the epochs, a checkpoint after each.

Gradients go over gloo between CPUs and over NCCL between GPUs. The driver's side is `training`.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import torch
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import ClusterRecipe, NeuMFRecipe, Recipe
from ray_recsys.core.artifact import MANIFEST
from ray_recsys.core.models.contract import GradientModel
from ray_recsys.core.models.fusion import Branch, branch_recipes, fuse, read_branch
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.device_stream import DeviceStream
from ray_recsys.core.sampling.epoch_stream import EpochStream
from ray_recsys.core.training.checkpoint import (
    BEST,
    checkpoint_name,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)
from ray_recsys.core.training.curves import write_curves
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.process import prepare_process
from ray_recsys.core.training.run import CURVES, RAY_STORAGE
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.user_shares import split_users
from ray_recsys.core.training.validation import Validation
from ray_recsys.core.training.warm_start import WarmStart, warm_start
from ray_recsys.distributed.cluster import configure_data
from ray_recsys.distributed.feed import worker_feed
from ray_recsys.distributed.progress_channel import ProgressSender
from ray_recsys.distributed.resources import FeedResources
from ray_recsys.errors import IntegrityError, RecsysError
from ray_recsys.progress import EpochFinished, Warned
from ray_recsys.storage.files import list_folder, list_tree, upload_tree
from ray_recsys.storage.location import Location

_SCRATCH = "ray-recsys-train-"


class WorkerArgs(BaseModel):
    """The driver's arguments to its workers."""

    model_config = ConfigDict(frozen=True)

    data: Location
    run: Location
    recipe: Recipe
    resources: FeedResources
    refit_epochs: int | None = None
    """Epochs of a refit on everything; None: training, with validation."""
    warm_start: WarmStart | None = None
    """Initial weights without a checkpoint; None: random."""
    member: int = 0
    """Number of the seed that this training has, of `train.num_seeds`; the recipe's seed is this one's."""
    branch: Branch | None = None
    """The branch to pre-train, whose recipe this is; None: the whole model."""
    branches: dict[Branch, Location] = {}
    """Checkpoints of the pre-trained branches of the whole model."""

    @property
    def stage(self) -> str:
        """Prefix of this training in Ray's storage; no prefix is a prefix of another."""
        kind = "train" if self.refit_epochs is None else "refit"
        kind = kind if self.branch is None else f"{self.branch}-{kind}"
        return f"seed{self.member}-{kind}" if self.member else kind

    def of_member(self, member: int) -> "WorkerArgs":
        """Returns the arguments of another seed."""
        recipe = self.recipe.model_copy(update={"seed": self.recipe.seed + member})
        return self.model_copy(update={"member": member, "recipe": recipe})

    def checkpoint_roots(self) -> list[Location]:
        """Returns the directories in which all attempts at this training have left checkpoints."""
        storage = self.run / RAY_STORAGE
        return [storage / name for name in list_folder(storage) if name.startswith(f"{self.stage}-")]


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
    shares, users = split_users(prepared, args.recipe, rank=rank, world_size=world_size)
    device = _device(args.recipe.cluster)
    feed: EpochStream | DeviceStream
    if args.resources.placement == "device":
        feed = DeviceStream(prepared, args.recipe, device, rank=rank, world_size=world_size, shares=shares)
    else:
        feed = worker_feed(prepared, args.recipe, args.resources, rank=rank, world_size=world_size, shares=shares)
    trainer = Trainer(
        _initial_model(prepared, args, users),
        args.recipe.train,
        steps_per_epoch=feed.plan.num_steps,
        num_epochs=args.refit_epochs,
        device=device,
        wrap=data_parallel,
        users=users,
    )
    validation = Validation.read(prepared, args.recipe, rank=rank, world_size=world_size, users=users)
    with scratch_directory() as scratch:
        reporter = _Reporter(trainer, rank, args, scratch, progress)
        try:
            reporter.restore(prepared)
            train_epochs(
                trainer, feed, validation, args.recipe.seed, reporter.after_epoch, on_checkpoint=reporter.checkpoint
            )
        except IntegrityError:
            raise  # of this worker alone: if it returned, the others would wait for its gradients
        except RecsysError as error:
            return error
        finally:
            feed.close()
    return None


def _initial_model(prepared: PreparedSet, args: WorkerArgs, users: range | None) -> GradientModel:
    """Returns the model with its initial weights: drawn, or of the branches that were trained first."""
    recipe = args.recipe
    build = MODELS[recipe.model.name].build
    assert build is not None
    if not args.branches:
        return build(prepared, recipe, users)
    model = build(prepared, recipe)
    assert isinstance(recipe.model, NeuMFRecipe)
    assert recipe.model.pretrain is not None
    recipes = branch_recipes(recipe)
    copies = {branch: verify_checkpoint(checkpoint) for branch, checkpoint in args.branches.items()}
    trained = {branch: read_branch(prepared, recipes[branch], copy.path / BEST) for branch, copy in copies.items()}
    fuse(model, trained, recipe.model.pretrain)
    if users is not None:
        model.keep_users(users)
    return model


def _device(cluster: ClusterRecipe) -> torch.device:
    """Returns where this worker trains; its GPU is this thread's current one afterwards."""
    if not cluster.use_gpu:
        return torch.device("cpu")
    from ray.train.torch import get_device  # a second of imports that a CPU's worker does without

    device = get_device()
    assert isinstance(device, torch.device)
    torch.cuda.set_device(device)
    return device


def set_threads(cluster: ClusterRecipe, *, workers_on_node: int) -> None:
    """Prepares this process, with its share of the node's cores as torch threads by default."""
    share = len(os.sched_getaffinity(0)) // workers_on_node
    prepare_process(cluster.threads_per_worker or max(1, share))


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yields a temporary directory; removes those that killed workers left on this machine, checkpoints included."""
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{_SCRATCH}*"):
        pid = left.name.removeprefix(_SCRATCH).split("-")[0]
        if not Path("/proc", pid).exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-") as directory:
        yield Path(directory)


class _Upload:
    """Uploads a checkpoint to an object store, its manifest last.

    Ray would copy with `pyarrow.fs.copy_files`, which does not notice that a file could not be stored.
    """

    def __init__(self, location: Location) -> None:
        self._storage: Any = ray.train.get_context().get_storage()
        self._location = location / self._storage.experiment_dir_name

    def __call__(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Returns the uploaded checkpoint.

        Raises:
            RecsysError: The store refused it, or failed after retries.
        """
        directory = Path(checkpoint.path)
        names = list_tree(Location.of(directory))
        for part in ([other for other in names if other != MANIFEST], [MANIFEST] if MANIFEST in names else []):
            upload_tree(directory, self._location / name, part)
        path = self._storage.build_checkpoint_path_from_name(name)
        return ray.train.Checkpoint(path, self._storage.storage_filesystem)


@dataclass(frozen=True, slots=True)
class _Reporter:
    """Reports to Ray Train, with a checkpoint or this worker's part of it; the first worker also to the driver."""

    trainer: Trainer
    rank: int
    args: WorkerArgs
    scratch: Path
    progress: ProgressSender

    def restore(self, prepared: PreparedSet) -> None:
        """Restores the newest intact checkpoint, the same on every worker; the first worker chooses it.

        Without one, the model takes the weights of the run's bundle, if it has one.
        """
        found = None
        if self.rank == 0:
            found, damaged = newest_checkpoint(self.args.checkpoint_roots())
            for error in damaged:
                self.progress.send(Warned(f"a damaged checkpoint is skipped: {error.message}"))
        found = ray.train.collective.broadcast_from_rank_zero(found)
        if found is not None:
            load_checkpoint(self.trainer, found, self._best)
        elif self.args.warm_start is not None:
            coverage = warm_start(self.trainer.model, self.args.warm_start.bundle, prepared, self.trainer.users)
            if self.rank == 0:
                self.progress.send(str(coverage))
        done = self.trainer.progress
        if self.rank == 0:
            self.progress.start(done.num_epochs, done.partial.num_steps)

    def after_epoch(self, record: EpochRecord, _: bool) -> None:
        """Reports an epoch."""
        self.checkpoint()
        if self.rank == 0:
            if self.args.stage == "train":
                write_curves(self.args.run / CURVES, self.trainer.progress.records)
            self.progress.send(self._event(record))

    def checkpoint(self) -> None:
        """Saves a checkpoint; its upload to the run's storage does not block training."""
        done, checkpoint, name = self.trainer.progress, None, None
        if self.rank == 0:
            name = checkpoint_name(done)
        if self.rank == 0 or self.trainer.users is not None:
            # Not in `scratch`: its upload may outlive this function.
            directory = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-"))
            save_checkpoint(self.trainer, directory, self._best)  # a full disk is raised: it may have room at a retry
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(
            {"epoch": done.num_epochs, "step": done.partial.num_steps},
            checkpoint=checkpoint,
            checkpoint_dir_name=name,  # the first worker's counts
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,  # it deletes the directory afterwards
            checkpoint_upload_fn=None if self.args.run.is_local else _Upload(self.args.run / RAY_STORAGE),
        )

    @property
    def _best(self) -> Path:
        """Directory that holds the best epoch's model."""
        return self.scratch / "best"

    def _event(self, record: EpochRecord) -> EpochFinished:
        label = self.trainer.metric.label
        return EpochFinished(
            epoch=record.epoch,
            num_epochs=self.args.refit_epochs or self.trainer.recipe.epochs,
            loss=record.loss,
            samples_per_s=record.samples_per_s,
            metric=label if label in record.metrics else None,
            metrics=record.metrics,
            seconds=record.train_s + record.validate_s,
            stage=self.args.stage,
        )
