"""Files of remote artefacts on this node's disk, by digest: each is downloaded and verified once a node.

    <cache>/<digest of names and sha256s>/…     an entry: some files of an artefact, under their own names
    <cache>/<digest>.lock                       held, shared, by users of the entry; its time is that of the last use
    <cache>/lock                                held while entries are removed

Processes of a node share it. The first to ask downloads, the others wait. Beyond the cache's limit, the least recently
used entries that are not in use are evicted. A local artefact is read in place.

`RAY_RECSYS_CACHE` names the directory, `RAY_RECSYS_CACHE_GB` its limit.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_recsys.errors import IntegrityError, StageError
from ray_recsys.storage.files import check_name, explained
from ray_recsys.storage.location import Location
from ray_recsys.storage.locks import lock_file

DIRECTORY = "RAY_RECSYS_CACHE"
LIMIT_GB = "RAY_RECSYS_CACHE_GB"
_DEFAULT_GB = 32.0
_TRANSFERS = 8
_ATTEMPTS = 3  # of a download whose content is not as listed: a server may have cut it short
_READ_BYTES = 4 << 20


@dataclass(frozen=True)
class LocalCopy:
    """Verified files on this node's disk; they stay as long as this object lives."""

    path: Path
    """Directory that has them under their names."""
    hold: object | None = None


def fetch(source: Location, files: Mapping[str, Mapping[str, Any]]) -> LocalCopy:
    """Returns files of an artefact on this node's disk: in place if they are local, else from the cache.

    Args:
        source: Folder of the artefact.
        files: Entries of its manifest, `bytes` and `sha256` by name. Local files are not verified here.

    Raises:
        IntegrityError: A file is missing, or not as listed.
        AccessError, StorageError: The store refused, or failed after retries.
        StageError: The cache is full of files that are in use.
    """
    if source.is_local:
        return LocalCopy(Path(source))
    entry = _own_directory() / _key(files)
    while True:
        descriptor = lock_file(entry.with_suffix(".lock"), fcntl.LOCK_SH)
        if entry.is_dir():
            os.utime(descriptor)
            return LocalCopy(entry, _Held(descriptor))
        os.close(descriptor)
        _fill(entry, source, files)


def cache_directory() -> Path:
    """Returns the directory of this node's cache."""
    given = os.environ.get(DIRECTORY)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"ray-recsys-cache-{os.getuid()}"


def _own_directory() -> Path:
    home = cache_directory()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if home.stat().st_uid != os.getuid():
        raise StageError(f"cache {home} belongs to another user", remedy=f"set {DIRECTORY} to a directory of yours")
    return home


def limit_bytes() -> int:
    """Returns the largest size of the cache."""
    return int(float(os.environ.get(LIMIT_GB) or _DEFAULT_GB) * 1e9)


class _Held:
    """An open, locked descriptor; closed when this object is collected."""

    def __init__(self, descriptor: int) -> None:
        weakref.finalize(self, os.close, descriptor)


def _key(files: Mapping[str, Mapping[str, Any]]) -> str:
    lines = "".join(f"{files[name]['sha256']} {name}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    descriptor = lock_file(path, kind)
    try:
        yield
    finally:
        os.close(descriptor)


def _fill(entry: Path, source: Location, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Downloads an entry, unless another process has done so."""
    with _locked(entry.with_suffix(".lock"), fcntl.LOCK_EX):
        if entry.is_dir():
            return
        unfinished = entry.with_name(f".tmp-{entry.name}-{uuid.uuid4().hex[:12]}")
        try:
            _reserve(unfinished, files)
            with ThreadPoolExecutor(_TRANSFERS) as threads:
                for _ in threads.map(lambda name: _download(source, name, files[name], unfinished / name), files):
                    pass
            unfinished.rename(entry)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _reserve(unfinished: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Makes room, and files of their final sizes without content, which others count from now on."""
    with _locked(unfinished.parent / "lock", fcntl.LOCK_EX):
        _make_room(unfinished.parent, sum(file["bytes"] for file in files.values()))
        for name, file in files.items():
            path = unfinished / check_name(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.truncate(path, file["bytes"])


def _download(source: Location, name: str, listed: Mapping[str, Any], target: Path) -> None:
    location = source / name
    for attempt in range(_ATTEMPTS):
        try:
            num_bytes, sha256 = _copy(location, target, listed["bytes"])
        except FileNotFoundError:
            raise IntegrityError(f"{location} is missing", remedy="create the artefact again") from None
        if sha256 == listed["sha256"]:
            return
        if attempt == _ATTEMPTS - 1:
            found = f"it has {num_bytes} bytes" if num_bytes != listed["bytes"] else "its content differs"
            raise IntegrityError(
                f"{location} was truncated or changed: {found}, not as listed with {listed['bytes']} bytes",
                remedy="create the artefact again",
            )


def _copy(location: Location, target: Path, num_bytes: int) -> tuple[int, str]:
    """Copies a file, but not much more than it should have; returns size and sha256 of what was copied."""
    digest, size = hashlib.sha256(), 0
    filesystem, path = location.resolve()
    with explained(location, "read"), filesystem.open_input_file(path) as stream, target.open("r+b") as file:
        while size <= num_bytes and (data := stream.read(_READ_BYTES)):
            digest.update(data)
            file.write(data)
            size += len(data)
    return size, digest.hexdigest()


def _make_room(home: Path, needed: int) -> None:
    """Removes entries until `needed` bytes fit; its caller holds the cache's lock.

    Raises:
        StageError: All remaining entries are in use.
    """
    for left in home.glob(".tmp-*"):
        _remove_abandoned(left)
    entries = {path: _size(path) for path in home.iterdir() if path.is_dir()}
    total = sum(entries.values())
    for path in sorted(entries, key=_last_use):
        if total + needed <= limit_bytes():
            return
        if not path.name.startswith(".") and _remove(path):
            total -= entries[path]
    if total + needed > limit_bytes():
        raise StageError(
            f"cache {home}: {needed:,} more bytes do not fit into its {limit_bytes():,}; {total:,} are in use",
            remedy=f"set {LIMIT_GB} to more, on every node, or {DIRECTORY} to a larger disk",
        )


def _remove_abandoned(unfinished: Path) -> None:
    """Removes partial downloads of killed processes; a living one holds the lock of its entry."""
    with suppress(BlockingIOError), _locked(_lock_of(unfinished), fcntl.LOCK_EX | fcntl.LOCK_NB):
        shutil.rmtree(unfinished, ignore_errors=True)


def _lock_of(unfinished: Path) -> Path:
    return unfinished.parent / f"{unfinished.name.split('-')[1]}.lock"


def _remove(entry: Path) -> bool:
    """Removes an entry unless it is in use; returns whether it was removed."""
    lock = entry.with_suffix(".lock")
    try:
        with _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(entry)
            lock.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    return True


def _last_use(entry: Path) -> float:
    with suppress(FileNotFoundError):
        return entry.with_suffix(".lock").stat().st_mtime
    return 0.0


def _size(entry: Path) -> int:
    return sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
