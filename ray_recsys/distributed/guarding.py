"""Errors of functions in Ray tasks: converted to the package's own, and losses of processes reported.

A task whose process or node was lost is retried a few times; an error of the package is not, and a machine's error (a
full disk, say) becomes a StageError.
"""

import ctypes
import errno
import functools
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import ray

from ray_recsys.distributed.ray_errors import causes
from ray_recsys.errors import RecsysError, StageError

NUM_RETRIES = 3
"""Of a task whose process or node was lost."""


def guarded(function: Callable[..., Any], stage: str, *arguments: Any) -> Any:
    """Returns the function's result, or the error that it raised: Ray would retry what it sees raised."""
    keep_freed_memory()
    try:
        return function(*arguments)
    except RecsysError as error:
        return error
    except (OSError, MemoryError, pa.ArrowException) as error:
        return StageError(f"{stage} failed: {_describe(error)}", remedy=_remedy(error))


def checked(result: Any) -> Any:
    """Returns a result of `guarded`, or raises the error that it is."""
    if isinstance(result, RecsysError):
        raise result
    return result


def is_lost(error: BaseException) -> bool:
    """Returns whether a Ray error means that processes or nodes were lost more often than a task is retried."""
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.ObjectLostError,
    )
    return any(isinstance(cause, lost) for cause in (error, *causes(error)))


def cause_of_loss(error: BaseException) -> str:
    """Returns why the process was lost, as text."""
    is_memory = any(isinstance(cause, ray.exceptions.OutOfMemoryError) for cause in (error, *causes(error)))
    return "it used more memory than the node has" if is_memory else "it crashed, or the system killed it"


def _describe(error: Exception) -> str:
    """Returns the error's text, which names its file; Arrow's out-of-memory error has none."""
    return str(error) or type(error).__name__


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or "errno 28" in str(error)):
        return "free space there, or choose a directory with more, and retry"
    if isinstance(error, MemoryError):
        return "give the tasks more memory: fewer CPUs a node, or more and smaller partitions"
    return "fix the cause and retry; nothing was left behind"


@functools.cache
def keep_freed_memory() -> None:
    """Makes this process reuse the memory of freed arrays instead of returning it: a tenth of prepare's time.

    Source: mallopt(3) of glibc; M_TRIM_THRESHOLD is -1, M_MMAP_MAX is -4. Other C libraries have no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)
