"""The model of a run or of a bundle, and whether it belongs to a prepared set."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ray_recsys.core.artifact import read_kind
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import bundle
from ray_recsys.core.recommending.bundle import Bundle, BundleManifest
from ray_recsys.core.training import run
from ray_recsys.core.training.run import Run, RunManifest, is_unfinished
from ray_recsys.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Where a checked model is and what it was trained on."""

    path: Path
    """Of the run or bundle."""
    directory: Path
    """Of the model's files."""
    name: str
    """As in the registry of models."""
    version: str
    """Tells the models apart that are at a path one after the other."""
    num_users: int
    num_items: int
    input_fingerprint: str
    """That of the prepared set it was trained on."""
    predicts_ratings: bool
    """Whether its scores are ratings."""
    refit: bool
    """Whether it has seen the held-out interactions of the prepared set."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the model of a run or bundle, every file of which is checked.

        Raises:
            ArtifactError: It is neither, another schema version, unfinished or damaged; names the file.
        """
        path = path.absolute()
        kind = read_kind(path)
        made: BundleManifest | RunManifest
        if kind == bundle.KIND:
            made = Bundle.open(path).manifest
            directory, version, fingerprint = path / bundle.MODEL, made.version, made.data_fingerprint
        elif kind == run.KIND or is_unfinished(path):
            opened = Run.open(path)
            opened.verify()
            made = opened.manifest
            directory, version, fingerprint = path / run.MODEL, made.created_at, made.input_fingerprint
        else:
            raise ArtifactError(f"{path} is neither a run nor a bundle", remedy="give what `train` or `publish` wrote")
        return cls(
            path=path,
            directory=directory,
            name=made.recipe.model.name,
            version=version,
            num_users=made.num_users,
            num_items=made.num_items,
            input_fingerprint=fingerprint,
            predicts_ratings=made.recipe.train.objective == "explicit",
            refit=made.refit,
        )

    def load(self) -> Model:
        """Returns the model."""
        return load_model(self.directory)

    @property
    def recall_directory(self) -> Path | None:
        """Files of the model that recalls, in a bundle that has one of its own; None: the model recalls for itself."""
        directory = self.path / bundle.RECALL_MODEL
        return directory if directory.is_dir() else None

    def check_fits(self, prepared: PreparedSet) -> None:
        """Checks that the model was trained on a prepared set: only then do indices mean the same.

        Raises:
            ArtifactError: It was not.
        """
        data = prepared.manifest
        found = (self.num_users, self.num_items)
        if (self.input_fingerprint, *found) != (data.input_fingerprint, data.num_users, data.num_items):
            raise ArtifactError(
                f"{self.path} was trained on other data ({found[0]:,} users, {found[1]:,} items, fingerprint "
                f"{self.input_fingerprint}) than {prepared.path} ({data.num_users:,} users, {data.num_items:,} items, "
                f"fingerprint {data.input_fingerprint})",
                remedy="give --data the prepared set that the model was trained on, or train on this one",
            )
