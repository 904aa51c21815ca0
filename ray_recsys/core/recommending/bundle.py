"""The bundle: one immutable directory with everything that serving needs, checked file by file when it is opened.

manifest.json                      version, parent, counts, metrics, recipe; size and sha256 of every file
model/                             the model that reranks
recall_model/                      the model that recalls, where it is another one
index.faiss                        the recall model's item vectors, if it has a recall space
users.arrow, item_ids.arrow        id ↔ index (see `vocabulary`)
items.arrow                        id, training count, title?, category?; row = item_idx
seen_offsets.npy, seen_items.npy   the items that each user has seen (see `seen`)
neighbours.npy, neighbour_scores.npy
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from ray_recsys.config import Recipe
from ray_recsys.core.artifact import (
    FileDigest,
    atomic_directory,
    digest_file,
    parse_manifest,
    read_manifest,
    verify_file,
    write_manifest,
)
from ray_recsys.core.models import neighbours
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import catalogue, seen
from ray_recsys.core.recommending.candidate_index import CandidateIndex, RankedCatalogue, Recall
from ray_recsys.core.recommending.catalogue import Catalogue
from ray_recsys.core.recommending.seen import SeenItems
from ray_recsys.core.vocabulary import Vocabulary, write_vocabulary
from ray_recsys.errors import IntegrityError

KIND = "bundle"
SCHEMA_VERSION = 2
MODEL = "model"
RECALL_MODEL = "recall_model"
USERS = "users.arrow"
INDEX = "index.faiss"


class BundleManifest(BaseModel):
    """Description of a bundle, in its directory and over HTTP."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: str
    """UTC time of its making, and the first 8 hex digits of the content's sha256."""
    parent: str | None
    """The version that was live when this one was made."""
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
    recipe: Recipe
    """Of the run whose model reranks."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose every file was checked; the large ones are memory-mapped."""

    path: Path
    manifest: BundleManifest
    users: Vocabulary
    catalogue: Catalogue
    seen: SeenItems
    neighbours: Neighbours

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a bundle after checking every byte of it against the manifest.

        Raises:
            ArtifactError: There is no bundle, it is of another schema version, or damaged; names the file.
        """
        path = path.absolute()
        manifest = read_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION)
        for name, entry in manifest.pop("files").items():
            verify_file(path, name, entry)
        bundle = cls(
            path,
            parse_manifest(BundleManifest, manifest, path),
            Vocabulary.open(path / USERS),
            Catalogue.open(path),
            SeenItems.open(path),
            Neighbours.open(path),
        )
        bundle._check_counts()
        return bundle

    @property
    def version(self) -> str:
        """The version that every answer made from this bundle carries."""
        return self.manifest.version

    def load_model(self) -> Model:
        """Returns the model that reranks."""
        return load_model(self.path / MODEL)

    def load_recall_model(self) -> Model | None:
        """Returns the model that recalls; None: the one that reranks."""
        return load_model(self.path / RECALL_MODEL) if (self.path / RECALL_MODEL).is_dir() else None

    def load_recall(self, recall_model: Model) -> Recall:
        """Returns stage 1: the index, or the recall model's own ranking of the catalogue."""
        index = self.path / INDEX
        return CandidateIndex.open(index) if index.is_file() else RankedCatalogue(recall_model)

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


@dataclass(frozen=True, slots=True)
class BundleModels:
    """The models of a bundle and what is derived from them."""

    rerank: Model
    rerank_name: str
    recall: Model | None
    """None: the model that reranks also recalls."""
    recall_name: str
    neighbours: Neighbours
    """Similar items of every item."""


def build_bundle(
    output: Path,
    *,
    models: BundleModels,
    prepared: PreparedSet,
    recipe: Recipe,
    metrics: Mapping[str, Mapping[str, float]],
    refit: bool = False,
    parent: str | None = None,
) -> BundleManifest:
    """Writes a bundle, complete or not at all; users are read a partition at a time.

    Args:
        output: Directory to make.
        models: Trained on `prepared`.
        prepared: Source of ids, item columns and seen items.
        recipe: Of the run.
        metrics: By split.
        refit: Whether the model was trained on held-out interactions too.
        parent: The live version that this one will replace.
    """
    shape = (prepared.manifest.num_users, prepared.manifest.num_items)
    assert (models.rerank.num_users, models.rerank.num_items) == shape
    with atomic_directory(output) as staging:
        _write_models(staging, models)
        catalogue.write_catalogue(staging, prepared.read_items())
        num_interactions = seen.write_seen(staging, prepared)
        write_vocabulary(staging / USERS, _user_ids(prepared))
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        digests = {str(path.relative_to(staging)): digest_file(path) for path in files}
        created_at = datetime.now(UTC)
        manifest = BundleManifest(
            version=f"{created_at:%Y%m%dT%H%M%SZ}-{_content_digest(digests)[:8]}",
            parent=parent,
            created_at=created_at.isoformat(timespec="seconds"),
            model=models.rerank_name,
            recall_model=models.recall_name,
            num_users=shape[0],
            num_items=shape[1],
            num_interactions=num_interactions,
            metrics={split: dict(values) for split, values in metrics.items()},
            refit=refit,
            data_fingerprint=prepared.manifest.input_fingerprint,
            recipe=recipe,
        )
        body = manifest.model_dump(mode="json")
        write_manifest(staging, kind=KIND, schema_version=SCHEMA_VERSION, body=body, digests=digests)
    return manifest


def _write_models(staging: Path, models: BundleModels) -> None:
    for name, model in ((MODEL, models.rerank), (RECALL_MODEL, models.recall)):
        if model is not None:
            (staging / name).mkdir()
            model.save(staging / name)
    space = (models.recall or models.rerank).recall_space()
    if space is not None:
        CandidateIndex.build(space).write(staging / INDEX)
    models.neighbours.write(staging)


def _user_ids(prepared: PreparedSet) -> pa.ChunkedArray:
    parts = [prepared.read_user_ids(partition) for partition in range(len(prepared.manifest.partitions))]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def _content_digest(digests: Mapping[str, FileDigest]) -> str:
    lines = "".join(f"{digest.sha256}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
