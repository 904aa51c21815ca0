"""A function of a task's number run over Ray Data, one task a number; results come back as they are done.

Ray Data retries a task whose node was lost as often as need be, so it must be a function of its number that may run
twice. An error of the package's own tree is not retried: it reaches the caller as it was raised.
"""

import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import ray.data

from ray_recsys.errors import RecsysError

Result = TypeVar("Result")


class _Numbered(Generic[Result]):
    """A Ray Data function: numbers in, results out, as objects."""

    def __init__(self, task: Callable[[int], Result]) -> None:
        self._task = task

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        _keep_freed_memory()
        results = np.empty(len(batch["id"]), object)
        for place, number in enumerate(batch["id"]):
            try:
                results[place] = self._task(int(number))
            except RecsysError as error:
                results[place] = error
        return {"result": results}


@functools.cache
def _keep_freed_memory() -> None:
    """Lets this process use the memory of large arrays again instead of giving it back: a tenth of prepare's time.

    Source: mallopt(3) of glibc; M_TRIM_THRESHOLD is -1, M_MMAP_MAX -4. Other C libraries have no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def run_tasks(task: Callable[[int], Result], num_tasks: int) -> Iterator[Result]:
    """Yields `task(number)` for every number below `num_tasks`, in any order.

    Args:
        task: Picklable; its result must be small, for it passes through the object store and the driver.
        num_tasks: How many.

    Raises:
        RecsysError: The first that a task raised.
    """
    if num_tasks == 0:
        return
    numbers = ray.data.range(num_tasks, override_num_blocks=num_tasks)
    results = numbers.map_batches(_Numbered(task).__call__, batch_size=None, batch_format="numpy", num_cpus=1)
    # Results are small: without Ray Data's budgets a free CPU gets its next task at once, not at the next poll.
    results.context.op_resource_reservation_enabled = False
    for row in results.iter_rows():
        result = row["result"]
        if isinstance(result, RecsysError):
            raise result
        yield result
