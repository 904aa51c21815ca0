"""Files at a location: atomic writes, reads, listings, deletion; errors name the URI.

Object stores have no rename: an object appears when its upload is complete. Requests are repeated with backoff by the
client libraries; what fails after that is a `StorageError`.
"""

import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import obstore
import pyarrow as pa
import pyarrow.fs as pafs
from obstore.exceptions import BaseError

from ray_recsys.errors import AccessError, IntegrityError, StorageError
from ray_recsys.storage.location import Location
from ray_recsys.storage.object_stores import has_conditional_put, open_store

_TRANSFERS = 8  # at once, of one artefact
_COPY_BYTES = 8 << 20
_NOT_ALLOWED = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|EXPIRED_TOKEN|UNRECOGNIZED_CLIENT|NO_SUCH_BUCKET"
    r"|NoSuchBucket|credential|Unauthenticated|PermissionDenied|169\.254\.169\.254|\b40[13]\b",
    re.IGNORECASE,
)


@contextmanager
def atomic_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yields a sibling of `path` to write to; renames it to `path` on success, removes it on any error.

    Args:
        path: The final name; an existing file is replaced, and its folder must exist.
        durable: Whether the file must survive a power failure from then on. False for scratch files and for files of a
            directory that is synchronised as a whole.
    """
    unfinished = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        yield unfinished
        if durable:
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
        unfinished.replace(path)
        if durable:
            sync_directory(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable: a rename is, once the directory that holds the name is."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explained(location: Location, action: str) -> Iterator[None]:
    """Turns a client library's error into one that names the URI; a missing file stays a FileNotFoundError.

    Raises:
        AccessError: The bucket is missing, or credentials are missing, wrong or insufficient.
        StorageError: Anything else, after the library's own retries.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, BaseError) as error:
        if location.is_local:
            raise
        raise storage_error(location, action, error) from error


def storage_error(location: Location, action: str, error: Exception) -> AccessError | StorageError:
    """Returns what a client library's error means; its first line tells why and has no secret."""
    text = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if _NOT_ALLOWED.search(str(error)):
        return AccessError(
            f"cannot {action} {location}: {text}",
            remedy="check the bucket's name and the credentials in the environment of this process and of every node, "
            "e.g. AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the node's role",
        )
    return StorageError(
        f"cannot {action} {location}: {text}",
        remedy="all retries failed: check the network and the store, then repeat the command",
    )


def is_file(location: Location) -> bool:
    """Returns whether there is a file."""
    if location.is_local:
        return Path(location).is_file()
    return bool(_info(location).is_file)


def exists(location: Location) -> bool:
    """Returns whether there is a file or a folder."""
    return Path(location).exists() if location.is_local else _info(location).type != pafs.FileType.NotFound


def open_input(location: Location) -> pa.NativeFile:
    """Opens a file to read at any position.

    Raises:
        FileNotFoundError: There is none.
    """
    filesystem, path = location.resolve()
    with explained(location, "read"):
        return filesystem.open_input_file(path)


def read_bytes(location: Location) -> bytes:
    """Returns the content of a small file.

    Raises:
        FileNotFoundError: There is none.
    """
    if location.is_local:
        return Path(location).read_bytes()
    filesystem, path = location.resolve()
    with explained(location, "read"), filesystem.open_input_stream(path) as stream:
        content: bytes = stream.read()
        return content


def read_text(location: Location) -> str:
    """Returns the content of a small file, UTF-8.

    Raises:
        FileNotFoundError: There is none.
    """
    return read_bytes(location).decode("utf8")


def write_bytes(location: Location, content: bytes) -> None:
    """Writes a small file; it appears complete, or stays as it was."""
    with written_file(location) as path:
        path.write_bytes(content)


@contextmanager
def written_file(location: Location, *, durable: bool = True) -> Iterator[Path]:
    """Yields a local path to write to; the file is at `location` once the block ends, and stays as it was on any error.

    Args:
        location: Its folder is made.
        durable: See `atomic_file`.
    """
    if location.is_local:
        path = Path(location)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, durable=durable) as unfinished:
            yield unfinished
        return
    with scratch_directory() as scratch:
        path = scratch / location.name
        yield path
        upload(path, location)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yields a temporary directory on this node's disk."""
    with tempfile.TemporaryDirectory(prefix="ray-recsys-") as directory:
        yield Path(directory)


def upload(path: Path, location: Location) -> None:
    """Copies a local file to an object store, where it appears when it is complete."""
    filesystem, target = location.resolve()
    with explained(location, "write"), path.open("rb") as source:
        if not isinstance(filesystem, pafs.S3FileSystem | pafs.GcsFileSystem):  # these have no folders to make
            filesystem.create_dir(str(PurePosixPath(target).parent), recursive=True)
        stream = filesystem.open_output_stream(target)
        shutil.copyfileobj(source, stream, _COPY_BYTES)
        stream.close()  # pyarrow's copy_files would ignore its error, and the file be lost


def upload_tree(directory: Path, location: Location, names: list[str]) -> None:
    """Copies files of a local directory to the same names in an object store, several at once."""
    with ThreadPoolExecutor(_TRANSFERS) as threads:
        for _ in threads.map(lambda name: upload(directory / name, location / name), names):
            pass


def list_folder(location: Location) -> list[str]:
    """Returns the names in a folder, sorted; none if there is no such folder."""
    if location.is_local:
        path = Path(location)
        return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    return sorted({name.parts[0] for name in _inside(location, recursive=False)})


def list_tree(location: Location) -> list[str]:
    """Returns the relative names of all files under a folder, sorted; none if there is no such folder."""
    if location.is_local:
        path = Path(location)
        return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return sorted(str(name) for name in _inside(location, recursive=True))


def last_change_s(location: Location) -> float:
    """Returns when a folder's newest file was written, in seconds since 1970; 0 for an empty one."""
    filesystem, path = location.resolve()
    with explained(location, "list"):
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    return max((info.mtime_ns / 1e9 for info in found if info.is_file and info.mtime_ns), default=0.0)


def delete_tree(location: Location) -> None:
    """Deletes a folder and its content; does nothing if there is none."""
    if location.is_local:
        shutil.rmtree(location, ignore_errors=True)
        return
    filesystem, path = location.resolve()
    with explained(location, "delete"), suppress(FileNotFoundError):
        filesystem.delete_dir(path)


def delete_file(location: Location) -> None:
    """Deletes a file; does nothing if there is none."""
    if location.is_local:
        Path(location).unlink(missing_ok=True)
        return
    with explained(location, "delete"), suppress(FileNotFoundError):
        if has_conditional_put(location):
            obstore.delete(*open_store(location))
        else:
            filesystem, path = location.resolve()
            filesystem.delete_file(path)


def check_name(name: str) -> str:
    """Returns a name that stays inside its folder.

    Raises:
        IntegrityError: It is absolute, leaves the folder, or is empty.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
        raise IntegrityError(f"{name!r} is no name of a file inside an artefact", remedy="create the artefact again")
    return name


def _info(location: Location) -> pafs.FileInfo:
    filesystem, path = location.resolve()
    with explained(location, "look at"):
        return filesystem.get_file_info(path)


def _inside(location: Location, *, recursive: bool) -> list[PurePosixPath]:
    filesystem, path = location.resolve()
    with explained(location, "list"):
        found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=recursive))
    root = path.lstrip("/")
    names = [(info, PurePosixPath(info.path.lstrip("/")).relative_to(root)) for info in found]
    return [name for info, name in names if info.is_file or not recursive]
