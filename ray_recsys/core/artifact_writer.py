"""Atomic writes of artefacts: complete or not at all.

On a local disk an artefact is written to a sibling of its final path and renamed. In an object store the manifest is
uploaded last; without it the artefact does not exist.
"""

import fcntl
import glob
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ray_recsys.core.artifact import MANIFEST, FileDigest, digest_file
from ray_recsys.errors import ArtifactError, RecsysError
from ray_recsys.storage.files import (
    check_name,
    delete_tree,
    exists,
    is_file,
    last_change_s,
    list_folder,
    list_tree,
    read_text,
    scratch_directory,
    sync_directory,
    upload_tree,
)
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.storage.pointers import read_pointer, replace_pointer

_PARTS = "parts-"
_ABANDONED_S = 86_400.0


@contextmanager
def atomic_directory(final: LocationLike, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a new local directory to fill; it becomes `final` on success and is deleted on any error.

    It is a sibling of `final`, or, for an object store, in a temporary folder of this node. A process killed inside
    leaves a `.<name>.tmp-*` directory, which no reader opens and the next writer removes, or objects without a
    manifest.

    Raises:
        ArtifactError: `final` exists, at the start or at the end, and `overwrite` is false.
    """
    location = Location.of(final)
    if location.is_local:
        with _renamed_directory(Path(location), overwrite=overwrite) as directory:
            yield directory
        return
    _refuse_existing(location, overwrite)
    with scratch_directory() as directory:
        yield directory
        publish_tree(directory, location, overwrite=overwrite)


def publish_tree(directory: Path, location: Location, *, overwrite: bool = False) -> None:
    """Uploads a complete artefact, the manifest last.

    Raises:
        ArtifactError: There is one already and `overwrite` is false.
    """
    before = read_pointer(location / MANIFEST)
    if before.text is not None and not overwrite:
        _refuse_existing(location, overwrite)
    names = list_tree(Location.of(directory))
    upload_tree(directory, location, [name for name in names if name != MANIFEST])
    if MANIFEST in names:
        replace_pointer(location / MANIFEST, (directory / MANIFEST).read_text(encoding="utf8"), before)


@contextmanager
def draft(final: LocationLike, *, overwrite: bool = False) -> Iterator[Location]:
    """Yields a location to which tasks on any node add the files of an artefact; the block ends with its manifest.

    On a local disk it is a sibling directory of `final`, which is renamed. In an object store it is a folder
    `parts-<random>` inside `final`, which the manifest names: an existing artefact stays whole until the new manifest
    replaces its own, and readers never see a mixture.

    Raises:
        ArtifactError: `final` exists, at the start or at the end, and `overwrite` is false.
        ConflictError: Another process has written there meanwhile.
    """
    location = Location.of(final)
    if location.is_local:
        with _renamed_directory(Path(location), overwrite=overwrite) as directory:
            yield Location.of(directory)
        return
    _refuse_existing(location, overwrite)
    before = read_pointer(location / MANIFEST)
    parts = location / f"{_PARTS}{uuid.uuid4().hex[:12]}"
    try:
        yield parts
        replace_pointer(location / MANIFEST, read_text(parts / MANIFEST), before)
    except BaseException:
        with suppress(RecsysError):  # a manifest whose upload seemed to fail may have arrived: its files must stay
            if parts.name not in (read_pointer(location / MANIFEST).text or ""):
                delete_tree(parts)
        raise
    with suppress(RecsysError):  # the new one is complete, even if deleting the old one fails
        _delete_old_parts(location, parts.name, before.text)


@contextmanager
def files_of_draft(root: Location, digests: dict[str, FileDigest]) -> Iterator[Path]:
    """Yields a local directory for files that this process adds to a draft; `digests` gets those of uploaded files."""
    if root.is_local:
        yield Path(root)
        return
    with scratch_directory() as directory:
        yield directory
        names = list_tree(Location.of(directory))
        digests.update({name: digest_file(directory / name) for name in names})
        upload_tree(directory, root, names)


def _delete_old_parts(location: Location, current: str, before: str | None) -> None:
    """Deletes the parts that the new manifest replaced, and those that killed writers left more than a day ago."""
    with suppress(ValueError, AttributeError):
        if replaced := json.loads(before or "{}").get("parts"):
            delete_tree(location / check_name(str(replaced)))
    for name in list_folder(location):
        if name.startswith(_PARTS) and name != current and last_change_s(location / name) < time.time() - _ABANDONED_S:
            delete_tree(location / name)


@contextmanager
def _renamed_directory(final: Path, *, overwrite: bool) -> Iterator[Path]:
    _refuse_existing(Location.of(final), overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(final)
    staging, lock = locked_directory(final)
    try:
        yield staging
        _sync_tree(staging)
        _refuse_existing(Location.of(final), overwrite)
        _replace_directory(staging, final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def locked_directory(final: Path) -> tuple[Path, int]:
    """Returns a new sibling of `final` and a descriptor that locks it until it is closed or the process dies."""
    name = uuid.uuid4().hex[:12]
    new = final.parent / f".{final.name}.new-{name}"
    new.mkdir()
    lock = os.open(new, os.O_RDONLY)
    with suppress(OSError):  # without file locks no directory counts as abandoned
        fcntl.flock(lock, fcntl.LOCK_EX)
    return new.rename(final.parent / f".{final.name}.tmp-{name}"), lock


def remove_abandoned(final: Path) -> None:
    """Removes the staging directories that killed processes left next to `final`, recognised by their missing locks."""
    for path in final.parent.glob(f".{glob.escape(final.name)}.tmp-*"):
        with suppress(OSError):  # locked by a living process, or removed meanwhile
            descriptor = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Renamed first: tasks that outlive their killed driver still write to the old name, and must fail.
                shutil.rmtree(path.rename(path.with_name(f".{final.name}.old-{uuid.uuid4().hex[:12]}")))
            finally:
                os.close(descriptor)


def _refuse_existing(final: Location, overwrite: bool) -> None:
    if not overwrite and (exists(final) if final.is_local else is_file(final / MANIFEST)):
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
