"""The bundle: one immutable directory with everything that serving needs, checked file by file when it is opened.

    manifest.json                      version, parent, counts, metrics, recipe; size and sha256 of every file
    model.safetensors, model.json      NeuMF
    users.arrow, item_ids.arrow        id ↔ index (see `vocabulary`)
    items.arrow                        id, training count, title?, category?; row = item_idx
    seen_offsets.npy, seen_items.npy   what each user has seen (see `seen`)
    index.faiss                        recall over the GMF item vectors
    neighbours.npy, neighbour_scores.npy

No file is a pickle. This module does not know where bundles are kept or which one is live.
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
from ray_recsys.core.models.model_files import load_model, save_model
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import catalogue, seen
from ray_recsys.core.recommending.catalogue import Catalogue
from ray_recsys.core.recommending.recall import Recall
from ray_recsys.core.recommending.seen import SeenItems
from ray_recsys.core.vocabulary import Vocabulary, write_vocabulary
from ray_recsys.errors import IntegrityError

KIND = "bundle"
SCHEMA_VERSION = 1
USERS = "users.arrow"
INDEX = "index.faiss"


class BundleManifest(BaseModel):
    """What a bundle says of itself, in its directory and over HTTP."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    version: str
    """UTC time of making, and the first 8 hex digits of the content's sha256."""
    parent: str | None
    """The version that was live when this one was made."""
    created_at: str
    num_users: int
    num_items: int
    num_interactions: int
    """Seen (user, item) pairs, held-out ones included."""
    metrics: dict[str, dict[str, float]]
    """By split, `validation` and, once evaluated, `test`."""
    data_fingerprint: str
    """Fingerprint of the prepared set's input."""
    recipe: Recipe


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

    def load_model(self) -> NeuMF:
        """Returns the model in evaluation mode."""
        return load_model(self.path)

    def load_recall(self) -> Recall:
        """Returns stage 1."""
        return Recall.open(self.path / INDEX)

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


def build_bundle(
    output: Path,
    *,
    model: NeuMF,
    prepared: PreparedSet,
    recipe: Recipe,
    item_neighbours: Neighbours,
    metrics: Mapping[str, Mapping[str, float]],
    parent: str | None = None,
) -> BundleManifest:
    """Writes a bundle, complete or not at all; users are read a partition at a time.

    Args:
        output: Directory to make.
        model: Trained on `prepared`.
        prepared: Source of ids, item columns and seen items.
        recipe: Of the run.
        item_neighbours: Similar items of every item.
        metrics: By split.
        parent: The live version that this one will replace.
    """
    assert (model.num_users, model.num_items) == (prepared.manifest.num_users, prepared.manifest.num_items)
    with atomic_directory(output) as staging:
        save_model(model, staging)
        Recall.build(model.recall_vectors()[1].numpy()).write(staging / INDEX)
        item_neighbours.write(staging)
        catalogue.write_catalogue(staging, prepared.read_items())
        num_interactions = seen.write_seen(staging, prepared)
        write_vocabulary(staging / USERS, _user_ids(prepared))
        digests = {file.name: digest_file(file) for file in sorted(staging.iterdir())}
        created_at = datetime.now(UTC)
        manifest = BundleManifest(
            version=f"{created_at:%Y%m%dT%H%M%SZ}-{_content_digest(digests)[:8]}",
            parent=parent,
            created_at=created_at.isoformat(timespec="seconds"),
            num_users=model.num_users,
            num_items=model.num_items,
            num_interactions=num_interactions,
            metrics={split: dict(values) for split, values in metrics.items()},
            data_fingerprint=prepared.manifest.input_fingerprint,
            recipe=recipe,
        )
        body = manifest.model_dump(mode="json")
        write_manifest(staging, kind=KIND, schema_version=SCHEMA_VERSION, body=body, digests=digests)
    return manifest


def _user_ids(prepared: PreparedSet) -> pa.ChunkedArray:
    parts = [prepared.read_user_ids(partition) for partition in range(len(prepared.manifest.partitions))]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def _content_digest(digests: Mapping[str, FileDigest]) -> str:
    lines = "".join(f"{digest.sha256}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
