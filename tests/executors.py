"""Executors for tests, which run everything in this process."""

import pickle
from collections.abc import Callable, Iterator
from typing import TypeVar

from ray_recsys.core.executor import SerialExecutor

Result = TypeVar("Result")


class ReversedExecutor(SerialExecutor):
    """Runs the tasks in an order that no cluster would choose, and pickles them and their results."""

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:  # noqa: ARG002
        """Yields the results of the tasks, the last first."""
        pickled = pickle.dumps(task)
        for number in reversed(range(num_tasks)):
            result: Result = pickle.loads(pickle.dumps(pickle.loads(pickled)(number)))
            yield result


EXECUTOR = ReversedExecutor()
