"""A trainer's resumable state as a directory.

weights.safetensors      the model after the last finished epoch
optimizer.pt             Adam's state, read with torch.load(weights_only=True)
progress.json            records of the epochs, steps, best epoch
best/                    the trained model of the best epoch, as `Model.save` writes it; none in the first epoch
manifest.json            size and sha256 of every file above
"""

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ray_recsys.core.artifact import local_copy, read_manifest, write_manifest
from ray_recsys.core.training.trainer import Progress, Trainer
from ray_recsys.errors import ArtifactError, IntegrityError
from ray_recsys.storage.cache import LocalCopy
from ray_recsys.storage.files import list_folder, read_bytes
from ray_recsys.storage.location import Location, LocationLike

KIND = "checkpoint"
SCHEMA_VERSION = 2
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
BEST = "best"
_PREFIX = "epoch-"

_PROGRESS = TypeAdapter(Progress)


def save_checkpoint(trainer: Trainer, directory: Path, best: Path) -> None:
    """Writes a trainer's state into an existing, empty directory.

    Args:
        trainer: After an epoch or a step.
        directory: Of the checkpoint.
        best: Directory that holds the best epoch's model between checkpoints; replaced if that is the last epoch.
    """
    progress = trainer.progress
    is_epoch_end = progress.num_epochs > 0 and not progress.partial.num_steps
    if is_epoch_end and progress.best_epoch == progress.num_epochs:
        shutil.rmtree(best, ignore_errors=True)
        best.mkdir(parents=True)
        trainer.model.export().save(best)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trainer.model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS)
    torch.save(trainer.optimizer.state_dict(), directory / OPTIMIZER)
    (directory / PROGRESS).write_bytes(_PROGRESS.dump_json(progress, indent=2))
    if progress.best_epoch:
        shutil.copytree(best, directory / BEST)
    body = {"epoch": progress.num_epochs, "step": progress.partial.num_steps}
    write_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION, body=body)


def checkpoint_name(progress: Progress) -> str:
    """Returns the name of a new checkpoint's directory: later ones sort behind earlier ones, and no two are equal.

    Equal names would mix the files of two checkpoints when a restarted run reaches a step again.
    """
    return f"{_PREFIX}{progress.num_epochs:06d}-{progress.partial.num_steps:09d}-{uuid.uuid4().hex[:8]}"


def newest_checkpoint(directories: Iterable[LocationLike]) -> tuple[Location | None, list[ArtifactError]]:
    """Returns the newest checkpoint whose every file is as it was written, and what is wrong with newer ones."""
    damaged: list[ArtifactError] = []
    folders = map(Location.of, directories)
    found = (folder / name for folder in folders for name in list_folder(folder) if name.startswith(_PREFIX))
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            verify_checkpoint(path)
            read_progress(path)
        except ArtifactError as error:
            damaged.append(error)
        else:
            return path, damaged
    return None, damaged


def load_checkpoint(trainer: Trainer, directory: LocationLike, best: Path) -> None:
    """Restores a trainer's state from a checkpoint, and the best epoch's model into the directory `best`.

    Raises:
        ArtifactError: No checkpoint, another schema version, truncated or changed; names the file.
    """
    copy = verify_checkpoint(directory)
    try:
        trainer.model.load_state_dict(load_file(copy.path / WEIGHTS))
        state = torch.load(copy.path / OPTIMIZER, map_location=trainer.device, weights_only=True)
        trainer.optimizer.load_state_dict(state)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise IntegrityError(f"{directory} does not hold the state of this recipe's model: {error}") from error
    trainer.progress = read_progress(directory)
    shutil.rmtree(best, ignore_errors=True)
    if trainer.progress.best_epoch:
        shutil.copytree(copy.path / BEST, best)


def verify_checkpoint(directory: LocationLike) -> LocalCopy:
    """Returns a checkpoint on this node's disk, every file of it checked.

    Raises:
        ArtifactError: No checkpoint, another schema version, truncated or changed; names the file.
    """
    location = Location.of(directory)
    return local_copy(location, read_manifest(location, kind=KIND, schema_version=SCHEMA_VERSION)["files"])


def read_progress(directory: LocationLike) -> Progress:
    """Returns the progress of a checkpoint's run.

    Raises:
        IntegrityError: Its file cannot be read.
    """
    file = Location.of(directory) / PROGRESS
    try:
        return _PROGRESS.validate_json(read_bytes(file))
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{file} cannot be read: {error}") from error
