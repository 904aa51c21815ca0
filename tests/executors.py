"""Executors for tests, which run everything in this process."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from ray_recsys.core.exchange import Handle, Left
from ray_recsys.core.executor import SerialExecutor

Result = TypeVar("Result")
Report = TypeVar("Report")


class ReversedExecutor(SerialExecutor):
    """Runs the tasks in an order that no cluster would choose, and pickles them, their inputs and their results."""

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:  # noqa: ARG002
        """Yields the results of the tasks, the last first."""
        pickled = pickle.dumps(task)
        for number in reversed(range(num_tasks)):
            result: Result = pickle.loads(pickle.dumps(pickle.loads(pickled)(number)))
            yield result

    def shares_memory(self, num_bytes: int) -> bool:  # noqa: ARG002
        """Returns False: parts are cut for each receiver."""
        return False

    def run(
        self,
        task: Callable[..., tuple[Report, Sequence[Any]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,
        describe: Callable[[int], str] = str,
    ) -> list[Left[Report]]:
        """Returns what the tasks left, of which the last ran first."""
        return self.run_generators(_Once(task), inputs, num_parts, stage=stage, describe=describe)

    def run_generators(
        self,
        task: Callable[..., Iterator[tuple[Report, Sequence[Any]]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,  # noqa: ARG002
        describe: Callable[[int], str] = str,  # noqa: ARG002
    ) -> list[Left[Report]]:
        """Returns what the tasks left, of which the last ran first."""
        pickled = pickle.dumps(task)
        all_left: list[Left[Report]] = []
        for number, values in reversed(list(enumerate(inputs))):
            copies = pickle.loads(pickle.dumps(tuple(values)))
            left: list[Any] = pickle.loads(pickle.dumps(list(pickle.loads(pickled)(number, *copies))))
            assert all(len(parts) == num_parts for _, parts in left)
            all_left[:0] = [Left(report, tuple(parts)) for report, parts in left]
        return all_left


class _Once:
    def __init__(self, task: Callable[..., Any]) -> None:
        self._task = task

    def __call__(self, number: int, *values: Any) -> Iterator[Any]:
        yield self._task(number, *values)


EXECUTOR = ReversedExecutor()
