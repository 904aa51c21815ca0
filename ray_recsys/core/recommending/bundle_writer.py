"""Makes a bundle from trained models and the prepared set that they were trained on."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from ray_recsys.config import BundleRecipe, Recipe
from ray_recsys.core.artifact import FileDigest, digest_file, write_manifest
from ray_recsys.core.artifact_writer import atomic_directory
from ray_recsys.core.models.contract import Model
from ray_recsys.core.models.neighbours import Neighbours
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import catalogue, guard, seen
from ray_recsys.core.recommending.bundle import (
    KIND,
    MODEL,
    RECALL_MODEL,
    SCHEMA_VERSION,
    USERS,
    Bundle,
    BundleManifest,
    RecallReport,
)
from ray_recsys.core.recommending.index_builder import build_index
from ray_recsys.core.vocabulary import write_vocabulary

_UNNAMED = "unpublished"  # the version is a digest of the files, smoke answers included


@dataclass(frozen=True, slots=True)
class BundleModels:
    """The models of a bundle and the arrays derived from them."""

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

    Raises:
        BundleRefusedError: It fails its smoke queries, e.g. because a weight is NaN.
    """
    shape = (prepared.manifest.num_users, prepared.manifest.num_items)
    assert (models.rerank.num_users, models.rerank.num_items) == shape
    created_at = datetime.now(UTC)
    with atomic_directory(output) as staging:
        recall = _write_models(staging, models, recipe.bundle)
        catalogue.write_catalogue(staging, prepared.read_items())
        num_interactions = seen.write_seen(staging, prepared)
        write_vocabulary(staging / USERS, _user_ids(prepared))
        manifest = BundleManifest(
            version=_UNNAMED,
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
            recall=recall,
            neighbour_recall=models.neighbours.recall,
            recipe=recipe,
        )
        guard.write_smoke(Bundle.of_files(staging, manifest))
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        digests = {str(path.relative_to(staging)): digest_file(path) for path in files}
        version = f"{created_at:%Y%m%dT%H%M%SZ}-{_content_digest(digests)[:8]}"
        manifest = manifest.model_copy(update={"version": version})
        body = manifest.model_dump(mode="json")
        write_manifest(staging, kind=KIND, schema_version=SCHEMA_VERSION, body=body, digests=digests)
    return manifest


def _write_models(staging: Path, models: BundleModels, recipe: BundleRecipe) -> RecallReport:
    for name, model in ((MODEL, models.rerank), (RECALL_MODEL, models.recall)):
        if model is not None:
            (staging / name).mkdir()
            model.save(staging / name)
    models.neighbours.write(staging)
    recall_model = models.recall or models.rerank
    space = recall_model.recall_space()
    if space is None:
        return RecallReport(method="model")
    index, report = build_index(recall_model, space, recipe)
    index.write(staging)
    return report


def _user_ids(prepared: PreparedSet) -> pa.ChunkedArray:
    parts = [prepared.read_user_ids(partition) for partition in range(len(prepared.manifest.partitions))]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks])


def _content_digest(digests: Mapping[str, FileDigest]) -> str:
    lines = "".join(f"{digest.sha256}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
