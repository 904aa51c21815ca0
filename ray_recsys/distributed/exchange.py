"""Tasks whose parts stay in Ray's object stores: the exchange of `core.exchange` on a cluster.

Each part is a separate object, so a receiver fetches no more than it needs, a store that is full spills to its
node's disk, and parts of a lost node are recomputed from their inputs. Plain Ray tasks, because they start at
once; measured against Ray Data's shuffles in docs/scale.md.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from ray_recsys.config import ClusterRecipe
from ray_recsys.core.exchange import Handle, Left
from ray_recsys.distributed.guarding import NUM_RETRIES, cause_of_loss, checked, guarded, is_lost
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.errors import RecsysError, StageError
from ray_recsys.progress import Reporter, silent

Report = TypeVar("Report")

_TASKS_PER_CPU = 2  # submitted: one at work, one waiting
_SHARED_FRACTION = 0.25  # of a node's store that a task's inputs may take together


@ray.remote(max_retries=NUM_RETRIES)
def _run(call: tuple[Callable[..., Any], str], num_parts: int, number: int, *values: Any) -> Any:
    task, stage = call
    result = guarded(task, stage, number, *values)
    if isinstance(result, RecsysError):
        return [result, *[None] * num_parts] if num_parts else result
    report, parts = result
    return [report, *parts] if num_parts else report


@ray.remote(max_retries=NUM_RETRIES, num_returns="streaming")
def _run_generator(call: tuple[Callable[..., Any], str], number: int, *values: Any) -> Iterator[Any]:
    task, stage = call
    left = task(number, *values)
    while True:
        result = guarded(next, stage, left, None)
        if result is None:
            return
        if isinstance(result, RecsysError):
            yield result
            return
        report, parts = result
        yield report
        yield from (part for part in parts)  # not from the sequence: Ray sends into what a generator yields from


class RayExchange:
    """Runs tasks on the outputs of others, on the Ray cluster that this process is connected to.

    Args:
        command: Named in errors.
        cluster: Whether to wait for nodes that start on demand.
        report: Receives what is missing if the tasks wait.
    """

    def __init__(self, command: str, cluster: ClusterRecipe, *, report: Reporter = silent) -> None:
        self._command, self._cluster, self._report = command, cluster, report

    @property
    def num_cpus(self) -> int:
        """CPUs of the cluster."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def shares_memory(self, num_bytes: int) -> bool:
        """Returns whether all tasks run on one node whose object store has `num_bytes` to spare."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
        if len(nodes) != 1 or self._cluster.wait_for_nodes:
            return False
        return bool(num_bytes <= _SHARED_FRACTION * nodes[0].get("object_store_memory", 0))

    def run(
        self,
        task: Callable[..., tuple[Report, Sequence[Any]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,
        describe: Callable[[int], str] = str,
    ) -> list[Left[Report]]:
        """Returns the output of each task, in order; see `core.exchange`.

        Raises:
            ClusterError: No CPU is free.
            RecsysError: The first that a task raised; a StageError if one crashed its process every time.
        """
        call = ray.put((task, stage))
        start = _run.options(num_returns=1 + num_parts)

        def submit(number: int, values: Sequence[Handle | None]) -> list[Any]:
            references = start.remote(call, num_parts, number, *values)
            return references if num_parts else [references]

        def collect(references: list[Any]) -> list[Left[Report]]:
            return [Left(checked(ray.get(references[0])), tuple(references[1:]))]

        return self._run_all(submit, lambda references: references[0], collect, inputs, stage=stage, describe=describe)

    def run_generators(
        self,
        task: Callable[..., Iterator[tuple[Report, Sequence[Any]]]],
        inputs: Iterable[Sequence[Handle | None]],
        num_parts: int,
        *,
        stage: str,
        describe: Callable[[int], str] = str,
    ) -> list[Left[Report]]:
        """Returns all outputs, in order; see `core.exchange` and `run`."""
        call = ray.put((task, stage))

        def submit(number: int, values: Sequence[Handle | None]) -> Any:
            return _run_generator.remote(call, number, *values)

        def collect(generator: Any) -> list[Left[Report]]:
            ray.get(generator.completed())
            references = list(generator)
            size = 1 + num_parts
            reports = [checked(report) for report in ray.get(references[::size])]
            return [
                Left(report, tuple(references[number * size + 1 : (number + 1) * size]))
                for number, report in enumerate(reports)
            ]

        return self._run_all(
            submit, lambda generator: generator.completed(), collect, inputs, stage=stage, describe=describe
        )

    def _run_all(
        self,
        submit: Callable[[int, Sequence[Handle | None]], Any],
        last_of: Callable[[Any], Any],
        collect: Callable[[Any], list[Left[Report]]],
        inputs: Iterable[Sequence[Handle | None]],
        *,
        stage: str,
        describe: Callable[[int], str],
    ) -> list[Left[Report]]:
        """Returns the outputs of all tasks; a few more than there are CPUs are submitted at a time."""
        require_cpu(self._command, self._cluster, report=self._report)
        waiting = enumerate(inputs)
        running: dict[Any, tuple[int, Any]] = {}
        left: dict[int, list[Left[Report]]] = {}
        while True:
            limit = _TASKS_PER_CPU * self.num_cpus
            while len(running) < limit and (entry := next(waiting, None)) is not None:
                submitted = submit(*entry)
                running[last_of(submitted)] = (entry[0], submitted)
            if not running:
                return [each for number in sorted(left) for each in left[number]]
            for finished in ray.wait(list(running), num_returns=1)[0]:
                number, submitted = running.pop(finished)
                try:
                    left[number] = collect(submitted)
                except ray.exceptions.RayError as error:
                    if not is_lost(error):
                        raise
                    raise _lost(error, stage, number, describe(number)) from error


def _lost(error: BaseException, stage: str, number: int, described: str) -> StageError:
    return StageError(
        f"{stage}: part {number}, counted from 0 ({described}), ended its process {NUM_RETRIES + 1} times "
        f"({cause_of_loss(error)})",
        remedy="look for a damaged file or for a part that needs more memory than a node has",
    )
