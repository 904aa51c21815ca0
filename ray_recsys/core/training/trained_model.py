"""The trained model of a run or of a bundle, and whether it belongs to a prepared set.

This module does not know what a model is used for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ray_recsys.core.artifact import read_kind
from ray_recsys.core.models.model_files import load_model
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import bundle
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.training import run
from ray_recsys.core.training.run import Run, is_unfinished
from ray_recsys.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """Where a checked model is and what it was trained on."""

    path: Path
    """Of the run or bundle."""
    weights: Path
    """Directory of the model's files."""
    num_users: int
    num_items: int
    input_fingerprint: str
    """That of the prepared set it was trained on."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the model of a run (its best epoch) or bundle, every file of which is checked.

        Raises:
            ArtifactError: It is neither, another schema version, unfinished or damaged; names the file.
        """
        path = path.absolute()
        kind = read_kind(path)
        if kind == bundle.KIND:
            manifest = Bundle.open(path).manifest
            return cls(path, path, manifest.num_users, manifest.num_items, manifest.data_fingerprint)
        if kind == run.KIND or is_unfinished(path):
            opened = Run.open(path)
            opened.verify()
            start = opened.manifest
            return cls(path, path / run.BEST, start.num_users, start.num_items, start.input_fingerprint)
        raise ArtifactError(f"{path} is neither a run nor a bundle; give what `train` or `publish` wrote")

    def load(self) -> NeuMF:
        """Returns the model, on the CPU and in evaluation mode."""
        return load_model(self.weights)

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
                f"fingerprint {data.input_fingerprint}); give --data the prepared set that the model was trained on, "
                "or train on this one"
            )
