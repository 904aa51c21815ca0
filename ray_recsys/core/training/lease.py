"""Exclusive access to a run or a pipeline's output: a lock on a local disk, a renewed lease in an object store."""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray_recsys.errors import ArtifactError, ConflictError, RecsysError
from ray_recsys.storage.files import delete_file
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.storage.locks import lock_file
from ray_recsys.storage.pointers import Pointer, read_pointer, replace_pointer

LEASE = ".lease"
_LEASE_S = 60.0
_RENEWALS = 4  # in the time of a lease, so that some may fail


@contextmanager
def leased(path: LocationLike) -> Iterator[None]:
    """Gives this process exclusive access to a run or a pipeline's output during the block.

    A killed process loses it: at once on a local disk or on the same machine, otherwise after a minute.

    Raises:
        ArtifactError: Another process holds it; names the process.
        ConflictError: At the end: another process took it meanwhile, since this one could not renew its lease.
    """
    run = Location.of(path)
    with _locked(Path(run / LEASE)) if run.is_local else _renewed(run / LEASE):
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = lock_file(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _is_held(path.parent, _owner_in(path)) from None
    except OSError:  # a file system without locks: nothing can be told about other processes
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    with os.fdopen(descriptor, "r+", encoding="utf8") as file:
        file.truncate(0)
        file.write(_owner())
        file.flush()
        yield
        path.unlink(missing_ok=True)  # of no use to a finished run


def _owner_in(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="utf8") or "another process"
    return "another process"


@contextmanager
def _renewed(location: Location) -> Iterator[None]:
    before = read_pointer(location)
    _check_free(location, before.text)
    try:
        held = replace_pointer(location, _lease(), before)
    except ConflictError:
        raise _is_held(location.parent, "another process") from None
    keeper = _Keeper(location, held)
    keeper.start()
    try:
        yield
    finally:
        keeper.stop()
    if keeper.loss is not None:
        raise keeper.loss
    delete_file(location)


class _Keeper(threading.Thread):
    """Renews a lease until it is stopped or another process holds it."""

    def __init__(self, location: Location, held: Pointer) -> None:
        super().__init__(daemon=True, name="lease")
        self._location, self._held, self._stopped = location, held, threading.Event()
        self.loss: ConflictError | None = None

    def run(self) -> None:
        while not self._stopped.wait(_LEASE_S / _RENEWALS):
            try:
                self._held = replace_pointer(self._location, _lease(), self._held)
            except ConflictError as error:
                self.loss = error
                return
            except RecsysError:
                continue  # the store may answer next time

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def _check_free(location: Location, text: str | None) -> None:
    lease: dict[str, Any] = {}
    with suppress(ValueError):
        lease = json.loads(text or "{}")
    left_s = lease.get("until", 0.0) - time.time()
    if left_s > 0 and not (lease.get("host") == socket.gethostname() and not _is_alive(lease.get("pid", 0))):
        raise _is_held(location.parent, f"{lease.get('owner')} (for another {left_s:.0f} s, unless renewed)")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _lease() -> str:
    lease = {"owner": _owner(), "host": socket.gethostname(), "pid": os.getpid(), "until": time.time() + _LEASE_S}
    return json.dumps(lease)


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _is_held(run: object, owner: str) -> ArtifactError:
    return ArtifactError(f"{run} is in use by {owner}", remedy="wait until it ends, or end it")
