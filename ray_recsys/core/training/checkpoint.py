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

from ray_recsys.core.artifact import read_manifest, verify_file, write_manifest
from ray_recsys.core.training.trainer import Progress, Trainer
from ray_recsys.errors import ArtifactError, IntegrityError

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
    torch.save(trainer.learner.state_dict(), directory / OPTIMIZER)
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


def newest_checkpoint(directories: Iterable[Path]) -> tuple[Path | None, list[ArtifactError]]:
    """Returns the newest checkpoint whose every file is as it was written, and what is wrong with newer ones."""
    damaged: list[ArtifactError] = []
    found = (path for directory in directories for path in directory.glob(f"{_PREFIX}*"))
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            verify_checkpoint(path)
            read_progress(path)
        except ArtifactError as error:
            damaged.append(error)
        else:
            return path, damaged
    return None, damaged


def load_checkpoint(trainer: Trainer, directory: Path, best: Path) -> None:
    """Restores a trainer's state from a checkpoint, and the best epoch's model into the directory `best`.

    Raises:
        ArtifactError: No checkpoint, another schema version, truncated or changed; names the file.
    """
    verify_checkpoint(directory)
    try:
        trainer.model.load_state_dict(load_file(directory / WEIGHTS))
        state = torch.load(directory / OPTIMIZER, map_location=trainer.device, weights_only=True)
        trainer.learner.load_state_dict(state)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise IntegrityError(f"{directory} does not hold the state of this recipe's model: {error}") from error
    trainer.progress = read_progress(directory)
    shutil.rmtree(best, ignore_errors=True)
    if trainer.progress.best_epoch:
        shutil.copytree(directory / BEST, best)


def verify_checkpoint(directory: Path) -> None:
    """Checks every file of a checkpoint.

    Raises:
        ArtifactError: No checkpoint, another schema version, truncated or changed; names the file.
    """
    for name, entry in read_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION)["files"].items():
        verify_file(directory, name, entry)


def read_progress(directory: Path) -> Progress:
    """Returns the progress of a checkpoint's run.

    Raises:
        IntegrityError: Its file cannot be read.
    """
    try:
        return _PROGRESS.validate_json((directory / PROGRESS).read_bytes())
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{directory / PROGRESS} cannot be read: {error}") from error
