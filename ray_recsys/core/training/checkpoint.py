"""A learner's resumable state as a directory.

    model.safetensors, model.json    the model after the last finished epoch
    optimizer.pt                     Adam's state, read with torch.load(weights_only=True)
    progress.json                    records of the epochs, steps, best epoch
    best/                            the best epoch's model, where it is not the last
    manifest.json                    size and sha256 of every file above

This module does not know where checkpoints are kept.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from ray_recsys.core.artifact import read_manifest, verify_file, write_manifest
from ray_recsys.core.models.model_files import WEIGHTS, save_model
from ray_recsys.core.training.learner import EpochRecord, Learner, Progress
from ray_recsys.core.training.run import BEST
from ray_recsys.errors import IntegrityError

KIND = "checkpoint"
SCHEMA_VERSION = 1
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"

_PROGRESS = TypeAdapter(Progress)


def save_checkpoint(learner: Learner, directory: Path) -> None:
    """Writes a learner's state into an existing, empty directory."""
    progress = learner.progress
    save_model(learner.model, directory)
    torch.save(learner.optimizer.state_dict(), directory / OPTIMIZER)
    (directory / PROGRESS).write_bytes(_PROGRESS.dump_json(progress, indent=2))
    if progress.best_epoch != progress.num_epochs:
        (directory / BEST).mkdir()
        save_model(learner.model, directory / BEST, weights=learner.best_weights)
    write_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION, body={"epoch": progress.num_epochs})


def load_checkpoint(learner: Learner, directory: Path) -> None:
    """Puts a learner into the state of a checkpoint.

    Raises:
        ArtifactError: No checkpoint, another schema version, truncated or changed; names the file.
    """
    verify_checkpoint(directory)
    try:
        weights = load_file(directory / WEIGHTS)
        learner.model.load_state_dict(weights)
        learner.optimizer.load_state_dict(torch.load(directory / OPTIMIZER, weights_only=True))
        learner.best_weights = load_file(best_model_directory(directory) / WEIGHTS)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise IntegrityError(f"{directory} does not hold the state of this recipe's model: {error}") from error
    learner.progress = read_progress(directory)


def verify_checkpoint(directory: Path) -> None:
    """Checks every file of a checkpoint.

    Raises:
        ArtifactError: No checkpoint, another schema version, truncated or changed; names the file.
    """
    for name, entry in read_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION)["files"].items():
        verify_file(directory, name, entry)


def read_progress(directory: Path) -> Progress:
    """Returns how far the run of a checkpoint is.

    Raises:
        IntegrityError: Its file cannot be read.
    """
    try:
        return _PROGRESS.validate_json((directory / PROGRESS).read_bytes())
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{directory / PROGRESS} cannot be read: {error}") from error


def best_model_directory(directory: Path) -> Path:
    """Returns where a checkpoint holds the best epoch's model."""
    best = directory / BEST
    return best if best.is_dir() else directory


def write_curves(path: Path, records: Sequence[EpochRecord]) -> None:
    """Writes one line an epoch, in one step, so that a reader never sees half a file."""
    names = list(dict.fromkeys(name for record in records for name in record.metrics))
    staging = path.with_name(f".{path.name}")
    with staging.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "loss", *names, "samples_per_s", "train_s", "validate_s"])
        for record in records:
            metrics = [f"{record.metrics[name]:.6f}" if name in record.metrics else "" for name in names]
            times = [f"{record.samples_per_s:.0f}", f"{record.train_s:.3f}", f"{record.validate_s:.3f}"]
            writer.writerow([record.epoch, f"{record.loss:.6f}", *metrics, *times])
    staging.rename(path)
