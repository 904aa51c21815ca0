"""Small files that several processes change: read with a tag, replaced only if unchanged since (compare-and-swap).

Compare-and-swap is a conditional put (If-Match, If-None-Match) on S3, GCS and Azure, and a lock on the folder on a
local disk. Other filesystems have neither: there the file is read again just before it is written, and two writers in
the same instant go unnoticed.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

from ray_recsys.errors import ConflictError
from ray_recsys.storage.files import is_file, read_bytes, storage_error, write_bytes
from ray_recsys.storage.location import Location
from ray_recsys.storage.object_stores import has_conditional_put, open_store


@dataclass(frozen=True, slots=True)
class Pointer:
    """Content of a small file when it was read; None: there was none."""

    text: str | None
    tag: str | None = None
    """The object store's tag of this content."""


def read_pointer(location: Location) -> Pointer:
    """Returns the file's content, to be replaced by `replace_pointer`; what is not UTF-8 in it becomes U+FFFD."""
    if has_conditional_put(location):
        store, path = open_store(location)
        try:
            with _explained(location, "read"):
                found = obstore.get(store, path)
                return Pointer(bytes(found.bytes()).decode("utf8", "replace"), found.meta["e_tag"])
        except FileNotFoundError:
            return Pointer(None)
    try:
        return Pointer(read_bytes(location).decode("utf8", "replace"))
    except (FileNotFoundError, NotADirectoryError):
        return Pointer(None)


def replace_pointer(location: Location, text: str, before: Pointer) -> Pointer:
    """Writes a file whose content is still `before`; returns it as it is now.

    Raises:
        ConflictError: Another process has written it meanwhile.
    """
    if has_conditional_put(location):
        return _put_if(location, text, before)
    with _locked(location.parent):
        now = read_pointer(location)
        if now.text != before.text:
            raise _conflict(location)
        write_bytes(location, text.encode())
    return Pointer(text)


def create_file(location: Location, content: bytes) -> None:
    """Creates a file that must not exist yet.

    Raises:
        ConflictError: It exists.
    """
    if has_conditional_put(location):
        _put_if(location, content.decode(), Pointer(None))
        return
    with _locked(location.parent):
        if is_file(location):
            raise _conflict(location)
        write_bytes(location, content)


def _put_if(location: Location, text: str, before: Pointer) -> Pointer:
    store, path = open_store(location)
    mode: Any = "create" if before.text is None else {"e_tag": before.tag}
    try:
        with _explained(location, "write"):
            return Pointer(text, obstore.put(store, path, text.encode(), mode=mode)["e_tag"])
    except (AlreadyExistsError, PreconditionError):
        now = read_pointer(location)
        if now.text == text:  # a repeated request whose first answer was lost
            return now
        raise _conflict(location) from None


def _conflict(location: Location) -> ConflictError:
    return ConflictError(
        f"{location} was changed by another process meanwhile", remedy="check its current content, then retry"
    )


@contextmanager
def _explained(location: Location, action: str) -> Iterator[None]:
    """Like `files.explained`; a failed condition stays an error of obstore."""
    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except FileNotFoundError as error:
        if action == "write":  # the bucket is missing
            raise storage_error(location, action, error) from error
        raise
    except BaseError as error:
        raise storage_error(location, action, error) from error


@contextmanager
def _locked(folder: Location) -> Iterator[None]:
    """Keeps a local folder to one writer at a time."""
    if not folder.is_local:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
