"""Executors of independent tasks: in this process, or on a cluster (`ray_recsys.distributed.executor`)."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from ray_recsys.core.exchange import Exchange, SerialExchange

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)


class Shared(Protocol[Value_co]):
    """A value that every task may read; it is picklable whatever the value's size."""

    def get(self) -> Value_co:
        """Returns the value in the calling process."""
        ...


class Executor(Exchange, Protocol):
    """Runs numbered tasks, and tasks on the outputs of others (`exchange`)."""

    @property
    def num_cpus(self) -> int:
        """CPUs that tasks may use together."""
        ...

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:
        """Yields `task(number)` for every number below `num_tasks`, in any order.

        Args:
            task: Picklable, and a pure function of its number: it may run twice. Its result passes through the driver,
                so it must be small. If it has a method `describe(number)`, errors quote it: the file of that number.
            num_tasks: How many.
            stage: What the tasks do and where, for errors: `reading the log into /prepared`.

        Raises:
            RecsysError: The first that a task raised.
        """
        ...

    def stream(self, function: Callable[[Item], Result], items: Iterable[Item], *, stage: str) -> Iterator[Result]:
        """Yields `function(item)` for each item, in order; a bounded number of items is held at a time.

        Raises:
            RecsysError: The first that a call raised.
        """
        ...

    def share(self, value: Value) -> Shared[Value]:
        """Returns a handle on a value that tasks need, so that it travels once per node instead of once per task."""
        ...


@dataclass(frozen=True, slots=True)
class _Held(Generic[Value]):
    value: Value

    def get(self) -> Value:
        return self.value


class SerialExecutor(SerialExchange):
    """Runs the tasks one after the other in this process."""

    num_cpus = 1

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:  # noqa: ARG002
        """Yields `task(number)` for every number below `num_tasks`, in order."""
        for number in range(num_tasks):
            yield task(number)

    def stream(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        stage: str,  # noqa: ARG002 - contract
    ) -> Iterator[Result]:
        """Yields `function(item)` for each item, in order."""
        return map(function, items)

    def share(self, value: Value) -> Shared[Value]:
        """Returns a handle on the value itself."""
        return _Held(value)


def map_in_order(executor: Executor, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> list[Result]:
    """Returns `task(number)` for every number below `num_tasks`, in order of the numbers; see `Executor.map`."""
    results = dict(executor.map(partial(with_number, task), num_tasks, stage=stage))
    return [results[number] for number in range(num_tasks)]


def with_number(task: Callable[[int], Result], number: int) -> tuple[int, Result]:
    """Returns a task's number with its result."""
    return number, task(number)
