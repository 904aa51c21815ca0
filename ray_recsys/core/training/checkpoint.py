"""A trainer's resumable state as a directory.

weights.safetensors      the model after the last finished epoch
average.safetensors      the mean of the weights over steps, with `train.ema_decay`
optimizer.pt             Adam's state, read with torch.load(weights_only=True)
users-*.safetensors      where the optimizer is sparse: rows of users and Adam's state of them, a file per worker; the
                         two files above are without these
progress.json            records of the epochs, steps, best epoch
best/                    the trained model of the best epoch, as `Model.save` writes it; none in the first epoch
manifest.json            size and sha256 of every file above
"""

import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_recsys.core.artifact import FileDigest, digest_file, local_copy, read_manifest, write_manifest
from ray_recsys.core.models.contract import SplitModel
from ray_recsys.core.models.files import ARRAYS, HEADER, save_model_part
from ray_recsys.core.models.user_parts import read_user_rows, write_user_part
from ray_recsys.core.training.data_parallel import all_gather, rank_of_process
from ray_recsys.core.training.learner import SparseLearner
from ray_recsys.core.training.trainer import Progress, Trainer
from ray_recsys.errors import ArtifactError, IntegrityError
from ray_recsys.storage.cache import LocalCopy
from ray_recsys.storage.files import list_folder, read_bytes
from ray_recsys.storage.location import Location, LocationLike

KIND = "checkpoint"
SCHEMA_VERSION = 2
WEIGHTS = "weights.safetensors"
AVERAGE = "average.safetensors"
OPTIMIZER = "optimizer.pt"
PROGRESS = "progress.json"
BEST = "best"
_PREFIX = "epoch-"
_STATE = "adam."

_PROGRESS = TypeAdapter(Progress)


def save_checkpoint(trainer: Trainer, directory: Path, best: Path) -> None:
    """Writes a trainer's state into an existing, empty directory.

    Where rows of users are split among workers, each calls this with its own directory; their files together form
    the checkpoint; the manifest, which the first worker writes, covers all. Otherwise one worker alone calls it.

    Args:
        trainer: After an epoch or a step.
        directory: Of the checkpoint.
        best: Directory that holds the best epoch's model between checkpoints; replaced if that is the last epoch.
    """
    progress, users = trainer.progress, trainer.users
    is_epoch_end = progress.num_epochs > 0 and not progress.partial.num_steps
    if is_epoch_end and progress.best_epoch == progress.num_epochs:
        shutil.rmtree(best, ignore_errors=True)
        best.mkdir(parents=True)
        _save_best(trainer, best)
    if progress.best_epoch:
        shutil.copytree(best, directory / BEST)
    if users is not None:
        write_user_part(directory, _user_rows(trainer), users.start)
    is_first = users is None or rank_of_process() == 0
    if is_first:
        of_users = trainer.model.user_tables if users is not None else ()
        state = trainer.model.state_dict()
        _save_tensors({name: tensor for name, tensor in state.items() if name not in of_users}, directory / WEIGHTS)
        if trainer.average is not None:
            _save_tensors(trainer.average.state_dict(), directory / AVERAGE)
        torch.save(trainer.learner.state_dict(), directory / OPTIMIZER)
        (directory / PROGRESS).write_bytes(_PROGRESS.dump_json(progress, indent=2))
    others: dict[str, FileDigest] = {}
    if users is not None:
        for part in all_gather({} if is_first else _digests(directory)):
            others |= part
    if is_first:
        body = {"epoch": progress.num_epochs, "step": progress.partial.num_steps}
        write_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION, body=body, elsewhere=others)


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _save_best(trainer: Trainer, best: Path) -> None:
    model, users = trainer.export(), trainer.users
    if users is None:
        model.save(best)
        return
    split = cast("SplitModel", model)
    num_users = sum(all_gather(len(users)))
    header, arrays = split.files()
    save_model_part(best, header, arrays, user_arrays=split.user_arrays, users=users, num_users=num_users)


def _user_rows(trainer: Trainer) -> dict[str, npt.NDArray[Any]]:
    """Returns the rows of this worker's users and their optimizer state, shared with the trainer."""
    assert isinstance(trainer.learner, SparseLearner)
    tables = {name: trainer.model.get_parameter(name).detach() for name in trainer.model.user_tables}
    state = {f"{_STATE}{name}": tensor for name, tensor in trainer.learner.user_optimizer.state().items()}
    return {name: tensor.cpu().numpy() for name, tensor in (tables | state).items()}


def _digests(directory: Path) -> dict[str, FileDigest]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): digest_file(path) for path in files}


def checkpoint_name(progress: Progress) -> str:
    """Returns the name of a new checkpoint's directory: later ones sort behind earlier ones, and no two are equal.

    Equal names would mix the files of two checkpoints when a restarted run reaches a step again.
    """
    return f"{_PREFIX}{progress.num_epochs:06d}-{progress.partial.num_steps:09d}-{uuid.uuid4().hex[:8]}"


def newest_checkpoint(directories: Iterable[LocationLike]) -> tuple[Location | None, list[ArtifactError]]:
    """Returns the newest intact checkpoint, and the errors of newer ones."""
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
        weights = load_file(copy.path / WEIGHTS)
        if trainer.users is not None:
            weights |= _restore_users(trainer, copy.path, trainer.users)
        trainer.model.load_state_dict(weights)
        if trainer.average is not None:
            trainer.average.load_state_dict(load_file(copy.path / AVERAGE))
        state = torch.load(copy.path / OPTIMIZER, map_location=trainer.device, weights_only=True)
        trainer.learner.load_state_dict(state)
    except (SafetensorError, RuntimeError, ValueError, KeyError, FileNotFoundError) as error:
        raise IntegrityError(f"{directory} does not hold the state of this recipe's model: {error}") from error
    trainer.progress = read_progress(directory)
    shutil.rmtree(best, ignore_errors=True)
    if trainer.progress.best_epoch:
        _restore_best(copy.path / BEST, best, trainer.users)


def _restore_users(trainer: Trainer, directory: Path, users: range) -> dict[str, Tensor]:
    """Restores the optimizer's state of this worker's users; returns their weights."""
    assert isinstance(trainer.learner, SparseLearner)
    rows = {name: torch.from_numpy(values) for name, values in read_user_rows(directory, users).items()}
    for name, tensor in trainer.learner.user_optimizer.state().items():
        tensor.copy_(rows.pop(f"{_STATE}{name}"))
    return rows


def _restore_best(source: Path, best: Path, users: range | None) -> None:
    """Copies the best epoch's model, of a worker with some users only its part."""
    if users is None:
        shutil.copytree(source, best)
        return
    best.mkdir(parents=True)
    write_user_part(best, read_user_rows(source, users), users.start)
    if users.start == 0 and users.stop > 0:
        for name in (HEADER, ARRAYS):
            shutil.copy(source / name, best / name)


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
