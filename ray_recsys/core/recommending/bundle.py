"""The bundle: one immutable directory with everything that serving needs, checked file by file when it is opened.

manifest.json                      version, parent, counts, metrics, recipe; size and sha256 of every file
model/                             the model that reranks
recall_model/                      the model that recalls, where it is another one
recall_vectors.npy                 the recall model's item vectors, if it has a recall space
recall_lists.faiss                 the same in inverted lists, in a large catalogue (see `index_builder`)
users.arrow, item_ids.arrow        id ↔ index (see `vocabulary`)
items.arrow                        id, training count, title?, category?; row = item_idx
titles.arrow, categories.arrow     indexes of titles and of categories
seen_offsets.npy, seen_items.npy   the items that each user has seen (see `seen`)
neighbours.npy, neighbour_scores.npy
smoke.json                         queries with their answers, repeated before it goes live (see `guard`)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from ray_recsys.config import Recipe
from ray_recsys.core.artifact import local_copy, parse_manifest, read_manifest, refuse_unlisted
from ray_recsys.core.models import neighbours
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.recommending import catalogue, seen
from ray_recsys.core.recommending.candidate_index import VECTORS, CandidateIndex, RankedCatalogue, Recall
from ray_recsys.core.recommending.catalogue import Catalogue
from ray_recsys.core.recommending.checked_once import check_once
from ray_recsys.core.recommending.seen import SeenItems
from ray_recsys.core.vocabulary import Vocabulary
from ray_recsys.errors import IntegrityError
from ray_recsys.storage.cache import LocalCopy, fetch
from ray_recsys.storage.location import Location, LocationLike

KIND = "bundle"
SCHEMA_VERSION = 4
MODEL = "model"
RECALL_MODEL = "recall_model"
USERS = "users.arrow"


class RecallReport(BaseModel):
    """Recall's search method and its measured quality."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    method: Literal["exact", "lists", "model"]
    """exact: every item's vector is compared; lists: those of the nearest inverted lists; model: the recall model ranks
    the catalogue itself."""
    num_lists: int | None = None
    num_probes: int | None = None
    """Lists that a query reads."""
    recall: float = 1.0
    """Part of the exact candidates that are found, the mean of sampled users."""
    num_candidates: int | None = None
    """Number of candidates that `recall` was measured at."""


class BundleManifest(BaseModel):
    """Description of a bundle, in its directory and over HTTP."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: str
    """UTC creation time, and the first 8 hex digits of the content's sha256."""
    parent: str | None
    """The version that was live when this one was created."""
    created_at: str
    model: str
    """Name of the model that reranks."""
    recall_model: str
    """Name of the model that recalls; often the same."""
    num_users: int
    num_items: int
    num_interactions: int
    """Seen (user, item) pairs, held-out ones included."""
    metrics: dict[str, dict[str, float]]
    """By split, `validation` and, once evaluated, `test`."""
    refit: bool
    """Whether the model was trained on everything, held-out interactions included."""
    data_fingerprint: str
    """Fingerprint of the prepared set's input."""
    recall: RecallReport
    """Search method of recall."""
    neighbour_recall: float
    """Part of each item's true nearest items that its similar items contain, on a sample; 1: the search was exact."""
    recipe: Recipe
    """Of the run whose model reranks."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file was checked; the large ones are memory-mapped.

    The files of a remote one are in this node's cache, where they stay as long as this object lives.
    """

    path: Path
    """Directory that has the files on this node."""
    manifest: BundleManifest
    users: Vocabulary
    catalogue: Catalogue
    seen: SeenItems
    neighbours: Neighbours
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    copy: LocalCopy | None = None

    @classmethod
    def open(cls, path: LocationLike) -> Self:
        """Opens a bundle after checking every byte of it against the manifest, once a node.

        Raises:
            ArtifactError: There is no bundle, it is of another schema version, or damaged; names the file.
        """
        location = Location.of(path)
        manifest = read_manifest(location, kind=KIND, schema_version=SCHEMA_VERSION)
        files = manifest.pop("files")
        copy = fetch(location, files)

        def verify() -> None:
            local_copy(Location.of(copy.path), files)
            refuse_unlisted(copy.path, files)

        check_once("sha256", copy.path, verify)
        of_files = cls.of_files(copy.path, parse_manifest(BundleManifest, manifest, location))
        bundle = replace(of_files, files=files, copy=copy)
        bundle._check_counts()
        return bundle

    @classmethod
    def of_files(cls, path: Path, manifest: BundleManifest) -> Self:
        """Maps the files of a directory, unchecked: for an unfinished bundle."""
        users, catalogue = Vocabulary.open(path / USERS), Catalogue.open(path)
        return cls(path, manifest, users, catalogue, SeenItems.open(path), Neighbours.open(path))

    @property
    def version(self) -> str:
        """The version, as in every response from this bundle."""
        return self.manifest.version

    def load_model(self) -> Model:
        """Returns the model that reranks."""
        return load_model(self.path / MODEL)

    def load_recall_model(self) -> Model | None:
        """Returns the model that recalls; None: the one that reranks."""
        return load_model(self.path / RECALL_MODEL) if (self.path / RECALL_MODEL).is_dir() else None

    def load_recall(self, recall_model: Model) -> Recall:
        """Returns stage 1: the index, or the recall model's own ranking of the catalogue."""
        has_vectors = (self.path / VECTORS).is_file()
        return CandidateIndex.open(self.path) if has_vectors else RankedCatalogue(recall_model)

    def _check_counts(self) -> None:
        users, items = self.manifest.num_users, self.manifest.num_items
        found = {
            USERS: (len(self.users), users),
            seen.OFFSETS: (self.seen.num_users, users),
            catalogue.TABLE: (len(self.catalogue), items),
            neighbours.IDX: (len(self.neighbours.item_idx), items),
        }
        for name, (rows, expected) in found.items():
            if rows != expected:
                raise IntegrityError(f"{self.path / name} has {rows} rows, the manifest says {expected}")
