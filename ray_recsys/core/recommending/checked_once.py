"""Runs a check of files once per node: the first process runs it, the others wait for its result.

A stamp file elsewhere records a check that passed. Its name is a digest of the files' inodes, sizes and times
of change, so that a file that was touched since, or is read through another mount, is checked again.
"""

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from ray_recsys import __version__

KEPT_S = 7 * 24 * 3600.0
_LIBRARIES = ("faiss-cpu", "numpy", "torch", "pyarrow")  # versions that determine a result
_PASSED = b"passed\n"


def check_once(name: str, directory: Path, check: Callable[[], None]) -> None:
    """Runs a check of a directory's files, unless it passed on this node since the files last changed.

    Args:
        name: Of the check; part of the stamp.
        directory: All files in it are covered.
        check: Raises if the files do not pass.
    """
    with _locked(_stamp_path(name, directory)) as stamp:
        if stamp is not None and os.pread(stamp, len(_PASSED), 0) == _PASSED:
            os.utime(stamp)
            return
        check()
        if stamp is not None:
            os.pwrite(stamp, _PASSED, 0)
            _remove_old(_home())


@contextmanager
def _locked(path: Path | None) -> Iterator[int | None]:
    """Yields the descriptor of a stamp that no other process holds; None where there can be no stamps."""
    if path is None:
        yield None
        return
    stamp = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(stamp, fcntl.LOCK_EX)
        yield stamp
    finally:
        os.close(stamp)


def _stamp_path(name: str, directory: Path) -> Path | None:
    """Returns the stamp of a check of files as they are; None: the node has no directory of this user's own."""
    home = _home()
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        state = home.lstat()
    except OSError:
        return None
    if state.st_uid != os.getuid() or state.st_mode & 0o077 or home.is_symlink():
        return None
    return home / hashlib.sha256(json.dumps([name, _software(), _files(directory)]).encode()).hexdigest()


def _home() -> Path:
    return Path(tempfile.gettempdir()) / f"ray_recsys-checked-{os.getuid()}"


def _files(directory: Path) -> list[tuple[str | int, ...]]:
    states = ((path, path.stat()) for path in sorted(directory.rglob("*")) if path.is_file())
    return [
        (str(path.relative_to(directory)), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)
        for path, at in states
    ]


def _software() -> list[str]:
    return [__version__, *(version(library) for library in _LIBRARIES)]


def _remove_old(home: Path) -> None:
    for path in home.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
