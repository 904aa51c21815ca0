"""Tasks on the cluster: one Ray Data task per number; results are yielded as tasks finish.

A task whose process or node was lost is retried, so a task must be a pure function of its number; after a few tries it
is reported as the cause. An error of the package is not retried: the caller receives it as it was raised. A
machine's error (a full disk, say) becomes a StageError.
"""

import functools
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import ray
import ray.data
import ray.util.annotations

from ray_recsys.core.executor import Shared, with_number
from ray_recsys.distributed.exchange import RayExchange
from ray_recsys.distributed.guarding import NUM_RETRIES, cause_of_loss, checked, guarded, is_lost
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.errors import RecsysError, StageError

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")

_ITEMS_PER_CPU = 2  # in flight: one being worked on, one waiting


class _Guarded(Generic[Item, Result]):
    """A function whose errors are returned."""

    def __init__(self, function: Callable[[Item], Result], stage: str) -> None:
        self._function, self._stage = function, stage

    def __call__(self, item: Item) -> Result | RecsysError:
        result: Result | RecsysError = guarded(self._function, self._stage, item)
        return result


class _Numbered(Generic[Result]):
    """A Ray Data function: numbers in, results out, as objects."""

    def __init__(self, task: Callable[[int], Result], stage: str) -> None:
        self._call = _Guarded(task, stage)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        results = np.empty(len(batch["id"]), object)
        for row, number in enumerate(batch["id"]):
            results[row] = self._call(int(number))
        return {"number": batch["id"], "result": results}


def _bounded_retries() -> dict[str, Any]:
    return {"max_retries": NUM_RETRIES}


@ray.remote(max_retries=NUM_RETRIES)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _result_of(reference: Any) -> Any:
    return checked(ray.get(reference))


def _described(task: Any, number: int) -> str:
    """Returns the description of a task, where it has one: ` (log.csv)`."""
    inner = task.args[0] if isinstance(task, functools.partial) and task.func is with_number else task
    describe = getattr(inner, "describe", None)
    return "" if describe is None else f" ({describe(number)})"


@dataclass(frozen=True, slots=True)
class _InObjectStore(Generic[Value]):
    reference: Any

    def get(self) -> Value:
        value: Value = ray.get(self.reference)
        return value


class RayExecutor(RayExchange):
    """Runs tasks on the Ray cluster that this process is connected to; see `RayExchange` for the arguments."""

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:
        """Yields `task(number)` for every number below `num_tasks`, in any order; see `core.executor`.

        Raises:
            ClusterError: No CPU is free.
            RecsysError: The first that a task raised; a StageError if a disk, a file system or memory failed.
        """
        if num_tasks == 0:
            return
        require_cpu(self._command, self._cluster, report=self._report)
        numbers = ray.data.range(num_tasks, override_num_blocks=num_tasks)
        with warnings.catch_warnings():
            # Ray 2.60 warns that it drops this argument in 2.64, and has no other that bounds retries.
            warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
            results = numbers.map_batches(
                _Numbered(task, stage).__call__,
                batch_size=None,
                batch_format="numpy",
                num_cpus=1,
                ray_remote_args_fn=_bounded_retries,
            )
        # Results are small. Without Ray Data's memory budgets, a free CPU gets its next task at once, not at a poll.
        results.context.op_resource_reservation_enabled = False
        results.context.execution_no_progress_timeout_s = -1
        missing = set(range(num_tasks))
        try:
            for row in results.iter_rows():
                missing.discard(row["number"])
                yield checked(row["result"])
        except ray.exceptions.RayError as error:
            if not is_lost(error):
                raise
            yield from self._run_singly(task, sorted(missing), num_tasks, stage)

    def _run_singly(
        self, task: Callable[[int], Result], numbers: list[int], num_tasks: int, stage: str
    ) -> Iterator[Result]:
        """Yields the results of a lost process's unfinished tasks, one by one to identify the task that crashes."""
        call: Any = ray.put(_Guarded(task, stage))
        for first in range(0, len(numbers), self.num_cpus):
            for number, reference in [(n, _call.remote(call, n)) for n in numbers[first : first + self.num_cpus]]:
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayError as error:
                    if not is_lost(error):
                        raise
                    raise StageError(
                        f"{stage}: part {number} of {num_tasks}, counted from 0{_described(task, number)}, ended its "
                        f"process {NUM_RETRIES + 1} times ({cause_of_loss(error)})",
                        remedy="look for a damaged file or for a part that needs more memory than a node has",
                    ) from error
                yield checked(result)

    def stream(self, function: Callable[[Item], Result], items: Iterable[Item], *, stage: str) -> Iterator[Result]:
        """Yields `function(item)` for each item, in order; two items per CPU are held at a time.

        Raises:
            ClusterError: No CPU is free.
            RecsysError: The first that a call raised; StageError: a disk, a file system or memory failed it.
        """
        require_cpu(self._command, self._cluster, report=self._report)
        call: Any = ray.put(_Guarded(function, stage))
        waiting: deque[Any] = deque()
        for item in items:
            waiting.append(_call.remote(call, item))
            if len(waiting) >= _ITEMS_PER_CPU * self.num_cpus:
                yield _result_of(waiting.popleft())
        while waiting:
            yield _result_of(waiting.popleft())

    def share(self, value: Value) -> Shared[Value]:
        """Returns a handle on a value in Ray's object store."""
        return _InObjectStore(ray.put(value))
