"""A run: the directory that `train` writes.

started.json             recipe and data that the run started with; a run without manifest.json is unfinished
recipe.toml              the recipe, as `--recipe` reads it
model/                   the trained model: of the best epoch on validation, or as fitted
last/                    checkpoint of the last epoch (only of models trained by gradient descent)
curves.csv               one line per epoch (likewise)
curves.svg               a plot of it (likewise)
manifest.json            best epoch, its metrics, size and sha256 of every file above
ray/                     Ray Train's storage, with the checkpoints, while the run is unfinished
.lease                   the process that trains the run, while it is unfinished
tensorboard/             TensorBoard's event files; like mlflow.json no part of the run that is checked
mlflow.json              which MLflow run records this one
"""

import datetime as dt
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe
from ray_recsys.core.artifact import MANIFEST, files_in, local_copy, parse_manifest, read_manifest, write_manifest
from ray_recsys.core.artifact_writer import publish_tree
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.lease import LEASE
from ray_recsys.core.training.warm_start import WarmStart
from ray_recsys.errors import ArtifactError, IntegrityError, RecipeError
from ray_recsys.storage.files import exists, is_file, read_bytes, scratch_directory, write_bytes
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.storage.pointers import create_file

KIND = "run"
SCHEMA_VERSION = 2
STARTED = "started.json"
RECIPE = "recipe.toml"
CURVES = "curves.csv"
CURVES_PLOT = "curves.svg"
MODEL = "model"
LAST = "last"
RAY_STORAGE = "ray"
TENSORBOARD = "tensorboard"
MLFLOW = "mlflow.json"

_NOT_CHECKED = (RAY_STORAGE, LEASE, TENSORBOARD, MLFLOW)
_SECTIONS = ("model", "feed", "train")
"""Recipe sections that determine a run's result; the others may change on resume."""
_FREE_KEYS = {"train": {"checkpoint_every_s"}}
"""Keys of these sections that may change too."""


class RunStart(BaseModel):
    """Inputs of a run; `--resume` requires the same."""

    model_config = ConfigDict(frozen=True)

    num_users: int
    num_items: int
    input_fingerprint: str
    """That of the prepared set."""
    recipe: Recipe
    warm_start: WarmStart | None = None
    """The bundle of the initial weights; None: a cold start."""


class RunManifest(RunStart):
    """Description of a finished run."""

    created_at: str
    num_epochs: int
    """Epochs that ran, early stopping considered; 0 for a model that is fitted without epochs."""
    best_epoch: int
    """Counted from 1; 0 without epochs."""
    metrics: dict[str, float]
    """Validation metrics of the model, or of the one before the refit, under the full-ranking protocol."""
    refit: bool = False
    """Whether the model was trained again on everything, held-out interactions included."""
    branch_epochs: dict[str, int] = {}
    """Best epoch of each pre-trained branch, by name."""


class TrainResult(BaseModel):
    """The result of a training."""

    model_config = ConfigDict(frozen=True)

    run: Location
    model: str
    num_users: int
    num_items: int
    num_epochs: int
    best_epoch: int
    metrics: dict[str, float]
    """Validation metrics of the model, or of the one before the refit, under the full-ranking protocol."""
    refit: bool
    wall_s: float
    """Of this call, start-up of the workers included."""

    @classmethod
    def of(cls, path: LocationLike, manifest: RunManifest, start_s: float) -> Self:
        """Returns the result of a training that started at `start_s` of `time.perf_counter`."""
        shared = manifest.model_dump(include={"num_users", "num_items", "num_epochs", "best_epoch", "metrics", "refit"})
        wall_s = round(time.perf_counter() - start_s, 3)
        return cls(run=Location.of(path), model=manifest.recipe.model.name, wall_s=wall_s, **shared)


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run whose manifest is valid."""

    location: Location
    manifest: RunManifest
    files: Mapping[str, Mapping[str, Any]]

    @property
    def path(self) -> Path:
        """The directory of a local run."""
        return Path(self.location)

    @classmethod
    def open(cls, path: LocationLike) -> Self:
        """Opens a finished run: checks its manifest and local files' sizes; `verify` and `load_model` check content.

        Raises:
            ArtifactError: No run, an unfinished one, another schema version, or damaged.
        """
        path = Location.of(path)
        if is_unfinished(path):
            raise ArtifactError(
                f"{path}: training has not finished", remedy="resume it with `ray-recsys train --resume`"
            )
        manifest = read_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION)
        files = manifest.pop("files")
        return cls(path, parse_manifest(RunManifest, manifest, path), files)

    def verify(self) -> None:
        """Checks the content of every file of a local run; those of a remote one are checked when they are read.

        Raises:
            IntegrityError: A file was changed.
        """
        if self.location.is_local:
            local_copy(self.location, self.files)

    def load_model(self) -> Model:
        """Returns the trained model.

        Raises:
            IntegrityError: One of its files was changed.
        """
        copy = local_copy(self.location, files_in(self.files, MODEL))
        return load_model(copy.path / MODEL)


def start_of(prepared: PreparedSet, recipe: Recipe, warm_start: WarmStart | None = None) -> RunStart:
    """Returns the inputs of a run on a prepared set."""
    data = prepared.manifest
    return RunStart(
        num_users=data.num_users,
        num_items=data.num_items,
        input_fingerprint=data.input_fingerprint,
        recipe=recipe,
        warm_start=warm_start,
    )


def check_refit(prepared: PreparedSet, recipe: Recipe) -> None:
    """Checks that a refit would not train on a test that is in separate files.

    Raises:
        RecipeError: It would.
    """
    if recipe.train.refit and prepared.manifest.split.get("method") == "given":
        raise RecipeError(
            f"train.refit = true: {prepared.location} has its test in separate files, on which a refit would train",
            remedy="set train.refit = false, or prepare one log with another split.method",
        )


def is_unfinished(path: LocationLike) -> bool:
    """Whether a directory holds a run that was started and not finished."""
    location = Location.of(path)
    return is_file(location / STARTED) and not is_file(location / MANIFEST)


def start_run(path: LocationLike, start: RunStart) -> None:
    """Makes the directory of a new run, with its recipe.

    Raises:
        ArtifactError: It exists.
    """
    location = Location.of(path)
    if exists(location):
        remedy = "choose another directory" + (", or resume it with --resume" if is_unfinished(location) else "")
        raise ArtifactError(f"{location} exists already", remedy=remedy)
    write_bytes(location / RECIPE, dump_recipe(start.recipe).encode())
    # last: a directory with this file is a run that can be resumed
    create_file(location / STARTED, (start.model_dump_json(indent=2) + "\n").encode())


@contextmanager
def run_directory(run: Location) -> Iterator[Path]:
    """Yields a local directory to complete a run in, and the run's inputs; it becomes the run when the block ends.

    A local run is completed in place. The files of another one are uploaded, the manifest last.
    """
    if run.is_local:
        yield Path(run)
        return
    with scratch_directory() as directory:
        for name in (STARTED, RECIPE):
            (directory / name).write_bytes(read_bytes(run / name))
        yield directory
        publish_tree(directory, run)


def read_start(path: LocationLike) -> RunStart:
    """Returns the inputs of an unfinished run.

    Raises:
        IntegrityError: Its file cannot be read.
    """
    file = Location.of(path) / STARTED
    try:
        return RunStart.model_validate_json(read_bytes(file))
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{file} cannot be read ({error})", remedy="train again into another directory") from error


def can_resume(path: LocationLike, start: RunStart) -> bool:
    """Whether the run at `path` is unfinished.

    A start without a bundle fits any run: the run's own bundle is used.

    Raises:
        ArtifactError: There is no run, or it started with other data, another recipe or bundle; names what differs.
    """
    is_open = is_unfinished(path)
    before = read_start(path) if is_open else Run.open(path).manifest
    if before.input_fingerprint != start.input_fingerprint:
        raise ArtifactError(
            f"{path} started with other data (fingerprint {before.input_fingerprint}, now {start.input_fingerprint})",
            remedy="resume with the same --data, or train into another directory",
        )
    if different := _differences(before.recipe, start.recipe):
        raise ArtifactError(
            f"{path} started with another recipe ({', '.join(different)})",
            remedy=f"resume with --recipe {Location.of(path) / RECIPE}, or train into another directory",
        )
    if start.warm_start is not None and start.warm_start != before.warm_start:
        began = "without a bundle" if before.warm_start is None else f"from bundle {before.warm_start.version}"
        raise ArtifactError(
            f"{path} started {began}, not from {start.warm_start.version}",
            remedy="resume without --warm-start, or train into another directory",
        )
    return is_open


def relevant_sections(recipe: Recipe) -> dict[str, Any]:
    """Returns the part of a recipe that determines a run's result."""
    return recipe.model_dump(mode="json", include={"seed", *_SECTIONS}, exclude=_FREE_KEYS)


def _differences(before: Recipe, now: Recipe) -> list[str]:
    different = [] if before.seed == now.seed else [f"seed = {before.seed}, now {now.seed}"]
    for section in _SECTIONS:
        old, new = (recipe.model_dump(include={section}, exclude=_FREE_KEYS)[section] for recipe in (before, now))
        changed = (key for key in old | new if old.get(key) != new.get(key))
        different += [f"{section}.{key} = {old.get(key)}, now {new.get(key)}" for key in changed]
    return different


def finish_run(
    directory: Path,
    *,
    num_epochs: int,
    best_epoch: int,
    metrics: Mapping[str, float],
    refit: bool = False,
    branch_epochs: Mapping[str, int] | None = None,
) -> RunManifest:
    """Completes a run in its `run_directory`, where model (and last/ and curves.csv) are; returns its manifest."""
    manifest = RunManifest(
        **read_start(directory).model_dump(),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        num_epochs=num_epochs,
        best_epoch=best_epoch,
        metrics=dict(metrics),
        refit=refit,
        branch_epochs=dict(branch_epochs or {}),
    )
    body = manifest.model_dump(mode="json")
    write_manifest(directory, kind=KIND, schema_version=SCHEMA_VERSION, body=body, exclude=_NOT_CHECKED)
    return manifest
