"""Locks on local files that end with their holder: released when it is collected or its process dies."""

import fcntl
import os
import weakref
from contextlib import suppress
from pathlib import Path


class Hold:
    """A lock on a file, shared by concurrent readers; released when it is collected or its process dies."""

    def __init__(self, path: Path, kind: int = fcntl.LOCK_SH) -> None:
        """Takes the lock.

        Raises:
            OSError: There is no such file, or another process holds an excluding lock.
        """
        descriptor = os.open(path, os.O_RDONLY)
        self.release = weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError:
            self.release()
            raise


class NoHold:
    """Stands for a hold where nothing needs one."""

    def release(self) -> None:
        """Does nothing."""


def lock_file(path: Path, kind: int) -> int:
    """Returns a descriptor of a lock file, locked; waits for it.

    Raises:
        BlockingIOError: `kind` has LOCK_NB and another process holds an excluding lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the file was removed, so the lock is void
