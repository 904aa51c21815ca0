"""Artefacts: immutable directories, local or in an object store, checked when they are read.

An artefact has a `manifest.json` that lists the size and sha256 of every other file in it, and a digest of itself.
Readers open only what a manifest lists. Atomic writes are in `artifact_writer`.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ray_recsys.errors import ArtifactError, IntegrityError, SchemaVersionError
from ray_recsys.storage.cache import LocalCopy, fetch
from ray_recsys.storage.files import (
    check_name,
    read_text,
    write_bytes,
)
from ray_recsys.storage.location import Location, LocationLike

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


def write_manifest(
    directory: LocationLike,
    *,
    kind: str,
    schema_version: int,
    body: Mapping[str, Any],
    digests: Mapping[str, FileDigest] | None = None,
    elsewhere: Mapping[str, FileDigest] | None = None,
    exclude: Collection[str] = (),
) -> None:
    """Writes a `manifest.json` that covers every file of the directory.

    Args:
        directory: The artefact, not yet published.
        kind: `prepared`, `run`, `bundle`, …; readers ask for one of them.
        schema_version: Incremented whenever an older reader would misread the artefact.
        body: JSON-ready content besides kind, schema_version and files.
        digests: Digests known already, by relative path; the others are computed here. In an object store: of every
            file, since a listing may lag behind.
        elsewhere: Digests of files that other processes have written and will be there when the artefact is read.
        exclude: Top-level names in the directory that are not part of the artefact.
    """
    location, files = Location.of(directory), dict(digests or {})
    if location.is_local:
        files = _digest_files(Path(location), files, exclude)
    files |= elsewhere or {}
    manifest = {
        "kind": kind,
        "schema_version": schema_version,
        **body,
        **({} if location.is_local else {"parts": location.name}),
        "files": {name: {"bytes": files[name].bytes, "sha256": files[name].sha256} for name in sorted(files)},
    }
    manifest["manifest_sha256"] = _digest_json(manifest)
    write_bytes(location / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def _digest_files(directory: Path, known: Mapping[str, FileDigest], exclude: Collection[str]) -> dict[str, FileDigest]:
    excluded = {MANIFEST, *exclude}
    paths = sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())
    names = [str(p) for p in paths if p.parts[0] not in excluded and not p.name.startswith(f".{MANIFEST}.tmp-")]
    return {name: known.get(name) or digest_file(directory / name) for name in names}


def read_kind(directory: LocationLike) -> object:
    """Returns the kind that a directory's manifest names; None if there is no readable manifest."""
    try:
        manifest = json.loads(read_text(Location.of(directory) / MANIFEST))
    except (OSError, ValueError):
        return None
    return manifest.get("kind") if isinstance(manifest, dict) else None


def read_manifest(directory: LocationLike, *, kind: str, schema_version: int) -> dict[str, Any]:
    """Returns a manifest after checking it, and names, presence and size of every local file, but not their content.

    The files are in the folder `parts` of it, if it has this key.

    Raises:
        ArtifactError: The directory is not an artefact of this kind.
        SchemaVersionError: It has another schema version.
        IntegrityError: The manifest was changed, a file is missing, a link or of another size, or has a name outside.
    """
    location = Location.of(directory)
    path = location / MANIFEST
    try:
        text = read_text(path)
        manifest = json.loads(text)
    except FileNotFoundError:
        raise ArtifactError(f"{location} is not a {_noun(kind)}: it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise IntegrityError(f"cannot read {path}: {error}", remedy=f"create the {_noun(kind)} again") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != kind:
        found = manifest.get("kind") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{location} is of kind {found!r}, not {kind!r}")
    if manifest.get("schema_version") != schema_version:
        raise SchemaVersionError(
            f"{path} has schema version {manifest.get('schema_version')!r}, but this version of ray_recsys reads "
            f"{schema_version}",
            remedy=f"create the {_noun(kind)} again with this version",
        )
    if manifest.pop("manifest_sha256", None) != _digest_json(manifest) or not text.endswith("\n"):
        raise IntegrityError(f"{path} was changed after it was written", remedy=f"create the {_noun(kind)} again")
    for name in manifest["files"]:
        check_name(name)
    if location.is_local:
        root = Path(location / check_name(manifest["parts"]) if "parts" in manifest else location)
        for name, entry in manifest["files"].items():
            _check_size(root, name, entry["bytes"], kind)
    return manifest


def local_copy(location: Location, files: Mapping[str, Mapping[str, Any]]) -> LocalCopy:
    """Returns files of an artefact on this node's disk, each checked against its manifest entry.

    A local artefact is read in place; a remote one is copied to the node's cache and checked once.

    Raises:
        IntegrityError: A file is missing or was changed.
    """
    if location.is_local:
        for name, entry in files.items():
            verify_file(Path(location), name, entry)
    return fetch(location, files)


def files_in(files: Mapping[str, Mapping[str, Any]], folder: str) -> dict[str, Mapping[str, Any]]:
    """Returns the manifest's entries of the files in a folder of the artefact."""
    return {name: entry for name, entry in files.items() if name.startswith(f"{folder}/")}


def refuse_unlisted(directory: Path, files: Collection[str]) -> None:
    """Checks that a local directory has no file that its manifest does not list; hidden files are ignored.

    Raises:
        IntegrityError: It has one.
    """
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if name not in files and name != MANIFEST and not path.is_dir() and not path.name.startswith("."):
            raise IntegrityError(
                f"{path} is not listed in {MANIFEST}", remedy="remove it, or create the artefact again"
            )


def parse_manifest(model: type[Model], body: Mapping[str, Any], directory: LocationLike) -> Model:
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
            f"{Location.of(directory) / MANIFEST} was written by another version of ray_recsys ({key}: {first['msg']})",
            remedy="create it again with this version",
        ) from None


def verify_file(directory: Path, name: str, entry: Mapping[str, Any]) -> None:
    """Checks one file's content against its manifest entry.

    Raises:
        IntegrityError: The file is missing or was changed.
    """
    path = directory / name
    _check_size(directory, name, entry["bytes"], "artefact")
    if digest_file(path).sha256 != entry["sha256"]:
        raise IntegrityError(
            f"{path} was changed: its content does not match its sha256 in {MANIFEST}",
            remedy="create the artefact again",
        )


def _check_size(directory: Path, name: str, expected: int, kind: str) -> None:
    path, remedy = directory / name, f"create the {_noun(kind)} again"
    if os.path.realpath(path) != str(Path(os.path.realpath(directory), name)):
        raise IntegrityError(f"{path} is a link, or in a folder that is one", remedy=remedy)
    if not path.is_file():
        raise IntegrityError(f"{path} is missing", remedy=remedy)
    if (found := path.stat().st_size) != expected:
        raise IntegrityError(f"{path} was truncated or changed: it has {found} bytes, not {expected}", remedy=remedy)


def _noun(kind: str) -> str:
    return "prepared set" if kind == "prepared" else kind


def _digest_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
