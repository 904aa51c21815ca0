"""Exchange of values between tasks: a task's output parts stay where they were produced until another task reads them.

A shuffle of rows: every task outputs one part for each receiver, and a receiver's inputs are its part of each
task, in order of the tasks. On Ray the parts are objects in the nodes' object stores (`distributed.exchange`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

Item = TypeVar("Item")
Report = TypeVar("Report")
Handle = object
"""Opaque handle on a part; only an exchange can read it."""


@dataclass(frozen=True, slots=True)
class Left(Generic[Report]):
    """Output of a task."""

    report: Report
    """Small; held by the driver."""
    parts: tuple[Handle, ...]


class Exchange(Protocol):
    """Runs tasks on the outputs of other tasks."""

    def shares_memory(self, num_bytes: int) -> bool:
        """Returns whether every task reaches all of `num_bytes` of parts without a copy, so that none need be cut."""
        ...

    def run(
        self,
        task: Callable[..., tuple[Report, Sequence[Any]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,
        describe: Callable[[int], str] = str,
    ) -> list[Left[Report]]:
        """Runs `task(number, *values)` for each sequence of inputs; returns the output of each, in order.

        Args:
            task: Returns (report, parts). Picklable, and a pure function of its arguments: it may run twice, also much
                later, after a node was lost with the task's output. The values are read-only.
            inputs: Of each task; taken from the iterable as tasks start, so that unreferenced values are freed.
            num_parts: Number of parts that each task outputs.
            stage: What the tasks do, for errors: `reading the log`.
            describe: Returns a description of a task's input, for errors.

        Raises:
            RecsysError: The first that a task raised; a StageError if one crashed its process every time.
        """
        ...

    def run_generators(
        self,
        task: Callable[..., Iterator[tuple[Report, Sequence[Any]]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,
        describe: Callable[[int], str] = str,
    ) -> list[Left[Report]]:
        """Like `run`, for tasks that yield any number of (report, parts); returns all of them in order."""
        ...


class SerialExchange:
    """Runs the tasks one after the other in this process; a part is its own handle."""

    def shares_memory(self, num_bytes: int) -> bool:  # noqa: ARG002 - contract
        """Returns True."""
        return True

    def run(
        self,
        task: Callable[..., tuple[Report, Sequence[Any]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,  # noqa: ARG002 - contract
        describe: Callable[[int], str] = str,  # noqa: ARG002 - contract
    ) -> list[Left[Report]]:
        """Returns the output of each task, in order."""
        return [_left(task(number, *values), num_parts) for number, values in enumerate(inputs)]

    def run_generators(
        self,
        task: Callable[..., Iterator[tuple[Report, Sequence[Any]]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,  # noqa: ARG002 - contract
        describe: Callable[[int], str] = str,  # noqa: ARG002 - contract
    ) -> list[Left[Report]]:
        """Returns all outputs, in order."""
        return [_left(left, num_parts) for number, values in enumerate(inputs) for left in task(number, *values)]


def _left(yielded: tuple[Report, Sequence[Any]], num_parts: int) -> Left[Report]:
    report, parts = yielded
    assert len(parts) == num_parts, (len(parts), num_parts)
    return Left(report, tuple(parts))


def drain(values: list[Item]) -> Iterator[Item]:
    """Yields the values of a list and removes them from it, so that each is freed after use."""
    values.reverse()
    while values:
        yield values.pop()
