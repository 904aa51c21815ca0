"""Immutable directories: written beside their final name, renamed when complete, checked when read.

An artefact is a directory with a `manifest.json` that lists the size and sha256 of every other file in it, and a digest
of itself.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ray_recsys.core.files import atomic_file, sync_directory
from ray_recsys.errors import ArtifactError, IntegrityError, SchemaVersionError

MANIFEST = "manifest.json"
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes and sha256 (hex) of a file."""

    bytes: int
    sha256: str


def digest_file(path: Path) -> FileDigest:
    """Returns the size and sha256 of a file."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(path.stat().st_size, sha256)


@contextmanager
def atomic_directory(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new directory beside `final`; renames it to `final` on success, removes it on any error.

    A process killed inside leaves a `.<name>.tmp-*` directory, which no reader opens and the next writer removes.

    Raises:
        ArtifactError: `final` exists, at the start or at the end, and `overwrite` is false.
    """
    final = final.absolute()
    _refuse_existing(final, overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(final)
    staging, lock = locked_directory(final)
    try:
        yield staging
        _sync_tree(staging)
        _refuse_existing(final, overwrite)
        _replace_directory(staging, final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def locked_directory(final: Path) -> tuple[Path, int]:
    """Returns a new directory beside `final`, and a descriptor that locks it until it is closed or the process dies."""
    name = uuid.uuid4().hex[:12]
    new = final.parent / f".{final.name}.new-{name}"
    new.mkdir()
    lock = os.open(new, os.O_RDONLY)
    with suppress(OSError):  # on a file system without locks nothing is ever taken for abandoned
        fcntl.flock(lock, fcntl.LOCK_EX)
    return new.rename(final.parent / f".{final.name}.tmp-{name}"), lock


def remove_abandoned(final: Path) -> None:
    """Removes the directories that killed processes left beside `final`, recognised by their missing locks."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        with suppress(OSError):  # locked by a living process, or removed meanwhile
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Renamed first: tasks that outlive their killed driver still write to the old name, and must fail.
                shutil.rmtree(path.rename(path.with_name(f".{final.name}.old-{uuid.uuid4().hex[:12]}")))
            finally:
                os.close(descriptor)


def _refuse_existing(final: Path, overwrite: bool) -> None:
    if final.exists() and not overwrite:
        raise ArtifactError(f"{final} exists already", remedy="give another directory, or remove it first")


def _replace_directory(staging: Path, final: Path) -> None:
    if final.exists():
        old = final.parent / f".{final.name}.old-{uuid.uuid4().hex[:12]}"
        final.rename(old)
        staging.rename(final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staging.rename(final)
    sync_directory(final.parent)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_directory(path)


def write_manifest(
    directory: Path,
    *,
    kind: str,
    schema_version: int,
    body: Mapping[str, Any],
    digests: Mapping[str, FileDigest] | None = None,
    exclude: Collection[str] = (),
) -> None:
    """Writes a `manifest.json` that covers every file of the directory.

    Args:
        directory: The artefact, not yet renamed to its final name.
        kind: `prepared`, `run`, `bundle`, …; readers ask for one of them.
        schema_version: Incremented whenever an older reader would misread the artefact.
        body: JSON-ready content besides kind, schema_version and files.
        digests: Digests known already, by relative path; the others are computed here.
        exclude: Top-level names in the directory that are not part of the artefact.
    """
    known = digests or {}
    excluded = {MANIFEST, *exclude}
    paths = sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())
    names = [str(p) for p in paths if p.parts[0] not in excluded and not p.name.startswith(f".{MANIFEST}.tmp-")]
    files = {name: known.get(name) or digest_file(directory / name) for name in names}
    manifest = {
        "kind": kind,
        "schema_version": schema_version,
        **body,
        "files": {name: {"bytes": d.bytes, "sha256": d.sha256} for name, d in files.items()},
    }
    manifest["manifest_sha256"] = _digest_json(manifest)
    with atomic_file(directory / MANIFEST) as unfinished:
        unfinished.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf8")


def read_kind(directory: Path) -> object:
    """Returns the kind that a directory's manifest names; None if there is no readable manifest."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf8"))
    except (OSError, ValueError):
        return None
    return manifest.get("kind") if isinstance(manifest, dict) else None


def read_manifest(directory: Path, *, kind: str, schema_version: int) -> dict[str, Any]:
    """Returns a manifest after checking it and the presence and size of every file, but not their content.

    Raises:
        ArtifactError: The directory is not an artefact of this kind.
        SchemaVersionError: It has another schema version.
        IntegrityError: The manifest was changed, or a file is missing or of another size.
    """
    path = directory / MANIFEST
    try:
        text = path.read_text(encoding="utf8")
        manifest = json.loads(text)
    except FileNotFoundError:
        raise ArtifactError(f"{directory} is not a {_noun(kind)}: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", remedy=f"create the {_noun(kind)} again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{directory} is of kind {found!r}, not {kind!r}")
    if manifest.get("schema_version") != schema_version:
        raise SchemaVersionError(
            f"{path} has schema version {manifest.get('schema_version')!r}, but this version of ray_recsys reads "
            f"{schema_version}",
            remedy=f"create the {_noun(kind)} again with this version",
        )
    if manifest.pop("manifest_sha256", None) != _digest_json(manifest) or not text.endswith("\n"):
        raise IntegrityError(f"{path} was changed after it was written", remedy=f"create the {_noun(kind)} again")
    for name, entry in manifest["files"].items():
        _check_size(directory / name, entry["bytes"], kind)
    return manifest


def parse_manifest(model: type[Model], body: Mapping[str, Any], directory: Path) -> Model:
    """Returns a manifest's content as a model.

    Raises:
        SchemaVersionError: The content does not fit the model, e.g. a recipe key that this version lacks.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise SchemaVersionError(
            f"{directory / MANIFEST} was written by another version of ray_recsys ({key}: {first['msg']})",
            remedy="create it again with this version",
        ) from None


def verify_file(directory: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Checks one file's content against its manifest entry.

    Raises:
        IntegrityError: The file is missing or was changed.
    """
    path = directory / name
    _check_size(path, entry["bytes"], "artefact")
    if digest_file(path).sha256 != entry["sha256"]:
        raise IntegrityError(
            f"{path} was changed: its content does not match its sha256 in {MANIFEST}",
            remedy="create the artefact again",
        )


def _check_size(path: Path, expected: int, kind: str) -> None:
    remedy = f"create the {_noun(kind)} again"
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", remedy=remedy)
    if (found := path.stat().st_size) != expected:
        raise IntegrityError(f"{path} was truncated or changed: it has {found} bytes, not {expected}", remedy=remedy)


def _noun(kind: str) -> str:
    return "prepared set" if kind == "prepared" else kind


def _digest_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
