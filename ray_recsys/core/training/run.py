"""A run: what `train` leaves behind.

    started.json             recipe and data that the run began with; a run without manifest.json is unfinished
    recipe.toml              the recipe, as `--recipe` reads it
    best/, last/             model.safetensors, model.json: the best epoch on validation, and the last
    curves.csv               one line an epoch
    manifest.json            best epoch, its metrics, size and sha256 of every file above
    ray/                     Ray Train's storage, while the run is unfinished

This module does not know how a model is trained.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe
from ray_recsys.core.artifact import parse_manifest, read_manifest, verify_file, write_manifest
from ray_recsys.core.models.model_files import SHAPE, WEIGHTS, load_model
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.errors import ArtifactError, IntegrityError

KIND = "run"
SCHEMA_VERSION = 1
STARTED = "started.json"
RECIPE = "recipe.toml"
CURVES = "curves.csv"
BEST = "best"
LAST = "last"
RAY_STORAGE = "ray"


class RunStart(BaseModel):
    """What a run began with; `--resume` continues only with the same."""

    model_config = ConfigDict(frozen=True)

    num_users: int
    num_items: int
    input_fingerprint: str
    """That of the prepared set."""
    recipe: Recipe


class RunManifest(RunStart):
    """What a finished run says of itself."""

    created_at: str
    num_epochs: int
    """Epochs that ran, early stopping considered."""
    best_epoch: int
    """Counted from 1."""
    metrics: dict[str, float]
    """Validation metrics of the best epoch, under the full-ranking protocol."""


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run that was opened and whose manifest holds."""

    path: Path
    manifest: RunManifest
    files: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a finished run: checks manifest, presence and sizes; `verify` and `load_model` check content.

        Raises:
            ArtifactError: No run, an unfinished one, another schema version, or damaged.
        """
        path = path.absolute()
        if is_unfinished(path):
            raise ArtifactError(f"{path}: training has not finished; continue it with `ray-recsys train --resume`")
        manifest = read_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION)
        files = manifest.pop("files")
        return cls(path, parse_manifest(RunManifest, manifest, path), files)

    def verify(self) -> None:
        """Checks the content of every file against the manifest.

        Raises:
            IntegrityError: A file was changed.
        """
        for name, entry in self.files.items():
            verify_file(self.path, name, entry)

    def load_model(self) -> NeuMF:
        """Returns the model of the best epoch, on the CPU and in evaluation mode.

        Raises:
            IntegrityError: One of its files was changed.
        """
        for name in (WEIGHTS, SHAPE):
            verify_file(self.path, f"{BEST}/{name}", self.files[f"{BEST}/{name}"])
        return load_model(self.path / BEST)


def is_unfinished(path: Path) -> bool:
    """Whether a directory holds a run that was started and not finished."""
    return (path / STARTED).is_file() and not (path / "manifest.json").exists()


def start_run(path: Path, start: RunStart) -> None:
    """Makes the directory of a new run, with its recipe."""
    path.mkdir(parents=True)
    (path / RECIPE).write_text(dump_recipe(start.recipe), encoding="utf8")
    # Last, and by a rename: a directory with this file is a run that can be resumed.
    staging = path / f".{STARTED}"
    staging.write_text(start.model_dump_json(indent=2) + "\n", encoding="utf8")
    staging.rename(path / STARTED)


def read_start(path: Path) -> RunStart:
    """Returns what an unfinished run began with.

    Raises:
        IntegrityError: Its file cannot be read.
    """
    try:
        return RunStart.model_validate_json((path / STARTED).read_text(encoding="utf8"))
    except (OSError, ValidationError) as error:
        raise IntegrityError(f"{path / STARTED} cannot be read ({error}); train anew into another directory") from error


def finish_run(path: Path, *, num_epochs: int, best_epoch: int, metrics: Mapping[str, float]) -> RunManifest:
    """Completes a run whose best/, last/ and curves.csv are in place; returns its manifest."""
    manifest = RunManifest(
        **read_start(path).model_dump(),
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        num_epochs=num_epochs,
        best_epoch=best_epoch,
        metrics=dict(metrics),
    )
    body = manifest.model_dump(mode="json")
    write_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION, body=body, exclude=(RAY_STORAGE,))
    return manifest
