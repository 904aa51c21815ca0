"""The model of a run or of a bundle, and whether it belongs to a prepared set."""

from dataclasses import dataclass
from typing import Any, Self

from ray_recsys.core.artifact import files_in, read_kind
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import bundle
from ray_recsys.core.recommending.bundle import Bundle, BundleManifest
from ray_recsys.core.training import run
from ray_recsys.core.training.run import Run, RunManifest, is_unfinished
from ray_recsys.errors import ArtifactError
from ray_recsys.storage.cache import fetch
from ray_recsys.storage.location import Location, LocationLike


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Location of a checked model and its training data."""

    path: Location
    """Of the run or bundle."""
    files: tuple[tuple[str, int, str], ...]
    """Name, size and sha256 of the models' files."""
    name: str
    """As in the registry of models."""
    version: str
    """Distinguishes successive models at the same path."""
    num_users: int
    num_items: int
    input_fingerprint: str
    """That of the prepared set it was trained on."""
    predicts_ratings: bool
    """Whether its scores are ratings."""
    refit: bool
    """Whether it has seen the held-out interactions of the prepared set."""

    @classmethod
    def open(cls, path: LocationLike) -> Self:
        """Returns the model of a run or bundle, every file of which is checked.

        Raises:
            ArtifactError: It is neither, another schema version, unfinished or damaged; names the file.
        """
        path = Location.of(path)
        kind = read_kind(path)
        made: BundleManifest | RunManifest
        if kind == bundle.KIND:
            of_bundle = Bundle.open(path)
            made, files = of_bundle.manifest, of_bundle.files
            version, fingerprint = made.version, made.data_fingerprint
        elif kind == run.KIND or is_unfinished(path):
            opened = Run.open(path)
            opened.verify()
            made, files = opened.manifest, opened.files
            version, fingerprint = made.created_at, made.input_fingerprint
        else:
            raise ArtifactError(
                f"{path} is neither a run nor a bundle",
                remedy="give an output of `train` or `publish`",
            )
        return cls(
            path=path,
            files=tuple(
                (name, entry["bytes"], entry["sha256"])
                for folder in (bundle.MODEL, bundle.RECALL_MODEL)
                for name, entry in files_in(files, folder).items()
            ),
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
        return self._load(bundle.MODEL)

    def load_recall(self) -> Model | None:
        """Returns the model that recalls, in a bundle with a separate one; None: the same model recalls."""
        return self._load(bundle.RECALL_MODEL) if any(self._files_in(bundle.RECALL_MODEL)) else None

    def _load(self, folder: str) -> Model:
        return load_model(fetch(self.path, self._files_in(folder)).path / folder)

    def _files_in(self, folder: str) -> dict[str, dict[str, Any]]:
        return {n: {"bytes": size, "sha256": sha} for n, size, sha in self.files if n.startswith(f"{folder}/")}

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
                f"{self.input_fingerprint}) than {prepared.location} ({data.num_users:,} users, "
                f"{data.num_items:,} items, fingerprint {data.input_fingerprint})",
                remedy="give --data the prepared set that the model was trained on, or train on this one",
            )
