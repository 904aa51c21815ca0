"""Tasks on the cluster: one Ray Data task per number; results come back as they finish.

Ray Data retries a task whose node was lost as often as needed, so a task must be a pure function of its number. An
error of the package's own tree is not retried: it reaches the caller as it was raised, and an error of the machine (a
full disk, say) as a StageError.
"""

import ctypes
import errno
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import ray
import ray.data

from ray_recsys.config import ClusterRecipe
from ray_recsys.core.executor import Shared
from ray_recsys.distributed.free_cpus import require_cpu
from ray_recsys.errors import RecsysError, StageError
from ray_recsys.progress import Reporter, silent

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

_ITEMS_PER_CPU = 2  # in flight: one being worked on, one waiting


class _Guarded(Generic[Item, Result]):
    """A function whose errors are returned: Ray would retry what it sees raised."""

    def __init__(self, function: Callable[[Item], Result], stage: str) -> None:
        self._function, self._stage = function, stage

    def __call__(self, item: Item) -> Result | RecsysError:
        _keep_freed_memory()
        try:
            return self._function(item)
        except RecsysError as error:
            return error
        except (OSError, MemoryError, pa.ArrowException) as error:
            return StageError(f"{self._stage} failed: {_describe(error)}", remedy=_remedy(error))


class _Numbered(Generic[Result]):
    """A Ray Data function: numbers in, results out, as objects."""

    def __init__(self, task: Callable[[int], Result], stage: str) -> None:
        self._call = _Guarded(task, stage)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = np.empty(len(batch["id"]), object)
        for row, number in enumerate(batch["id"]):
            results[row] = self._call(int(number))
        return {"result": results}


def _result_of(reference: Any) -> Any:
    result = ray.get(reference)
    if isinstance(result, RecsysError):
        raise result
    return result


def _describe(error: Exception) -> str:
    """Returns the error with its file; Arrow's out of memory has no text of its own."""
    return str(error) or type(error).__name__


def _remedy(error: Exception) -> str:
    if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or "errno 28" in str(error)):
        return "free space there, or choose a place with more, and retry"
    if isinstance(error, MemoryError):
        return "give the tasks more memory: fewer CPUs a node, or more and smaller partitions"
    return "fix the cause and retry; nothing was left behind"


@functools.cache
def _keep_freed_memory() -> None:
    """Lets this process use the memory of large arrays again instead of giving it back: a tenth of prepare's time.

    Source: mallopt(3) of glibc; M_TRIM_THRESHOLD is -1, M_MMAP_MAX -4. Other C libraries have no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


@dataclass(frozen=True, slots=True)
class _InObjectStore(Generic[Value]):
    reference: Any

    def get(self) -> Value:
        value: Value = ray.get(self.reference)
        return value


class RayExecutor:
    """Runs tasks on the Ray cluster that this process is connected to.

    Args:
        command: Names the command in errors.
        cluster: Whether missing CPUs are waited for.
        report: Told of nodes that are waited for.
    """

    def __init__(self, command: str, cluster: ClusterRecipe, *, report: Reporter = silent) -> None:
        self._command, self._cluster, self._report = command, cluster, report

    @property
    def num_cpus(self) -> int:
        """CPUs of the cluster."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:
        """Yields `task(number)` for every number below `num_tasks`, in any order; see `core.executor`.

        Raises:
            ClusterError: No CPU is free.
            RecsysError: The first that a task raised; StageError: a disk, a file system or memory failed it.
        """
        if num_tasks == 0:
            return
        require_cpu(self._command, wait_for_nodes=self._cluster.wait_for_nodes, report=self._report)
        numbers = ray.data.range(num_tasks, override_num_blocks=num_tasks)
        results = numbers.map_batches(
            _Numbered(task, stage).__call__, batch_size=None, batch_format="numpy", num_cpus=1
        )
        # Results are small: without Ray Data's budgets a free CPU gets its next task at once, not at the next poll.
        results.context.op_resource_reservation_enabled = False
        results.context.execution_no_progress_timeout_s = -1
        for row in results.iter_rows():
            result = row["result"]
            if isinstance(result, RecsysError):
                raise result
            yield result

    def stream(self, function: Callable[[Item], Result], items: Iterable[Item], *, stage: str) -> Iterator[Result]:
        """Yields `function(item)` for each item, in order; two items per CPU are held at a time.

        Raises:
            ClusterError: No CPU is free.
            RecsysError: The first that a call raised; StageError: a disk, a file system or memory failed it.
        """
        require_cpu(self._command, wait_for_nodes=self._cluster.wait_for_nodes, report=self._report)
        call = ray.remote(_Guarded(function, stage).__call__)
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(call.remote(item))
            if len(waiting) >= _ITEMS_PER_CPU * self.num_cpus:
                yield _result_of(waiting.popleft())
        while waiting:
            yield _result_of(waiting.popleft())

    def share(self, value: Value) -> Shared[Value]:
        """Returns a handle on a value in Ray's object store."""
        return _InObjectStore(ray.put(value))


def run_tasks(task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:
    """Yields `task(number)` for every number below `num_tasks`. Goes when its last caller takes an executor."""
    return RayExecutor("the stage", ClusterRecipe()).map(task, num_tasks, stage=stage)
