"""Whether the cluster has room for a trial of a search: before it starts, and when nodes are lost."""

import time
from typing import Any

from ray import tune as ray_tune

from ray_recsys.config import Recipe
from ray_recsys.distributed.resources import num_workers_that_fit
from ray_recsys.distributed.trial import worker_resources
from ray_recsys.errors import ClusterError, StageError
from ray_recsys.progress import Reporter
from ray_recsys.storage.location import Location

_CHECK_S = 1.0


def require_trial_room(recipe: Recipe, report: Reporter) -> None:
    """Checks that the cluster's nodes hold a trial.

    Raises:
        ClusterError: They do not, and `cluster.wait_for_nodes` is not set.
    """
    needed, workers = worker_resources(recipe), recipe.tune.workers_per_trial
    if (room := num_workers_that_fit(needed)) >= workers:
        return
    each = " and ".join(f"{amount:g} {name}s" for name, amount in needed.items())
    message = f"a trial needs {workers} workers with {each} each, but the cluster's nodes hold {room}"
    if not recipe.cluster.wait_for_nodes:
        raise ClusterError(message, remedy="lower tune.workers_per_trial or cluster.cpus_per_worker, or add nodes")
    report(f"waiting for nodes: {message}")


class NoTrialRoom(ray_tune.Stopper):
    """Ends a search whose trials have found no room for `cluster.start_timeout_s`; Tune would wait without end."""

    def __init__(self, recipe: Recipe, output: Location) -> None:
        self._needed, self._num_workers = worker_resources(recipe), recipe.tune.workers_per_trial
        self._cluster, self._output = recipe.cluster, output
        self._since_s: float | None = None
        self._next_s = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:  # noqa: ARG002 - of Tune's shape
        """Stops no trial by its result."""
        return False

    def stop_all(self) -> bool:
        """Raises a StageError when the time is over; Tune asks several times a second."""
        now_s = time.monotonic()
        if self._cluster.wait_for_nodes or now_s < self._next_s:
            return False
        self._next_s = now_s + _CHECK_S
        if num_workers_that_fit(self._needed) >= self._num_workers:
            self._since_s = None
            return False
        self._since_s = now_s if self._since_s is None else self._since_s
        if now_s - self._since_s < self._cluster.start_timeout_s:
            return False
        needed = ", ".join(f"{amount:g} {name}s" for name, amount in self._needed.items())
        raise StageError(
            f"the search stopped: no trial of {self._num_workers} workers, {needed} each, finds room on the cluster; "
            f"waited {self._cluster.start_timeout_s:g} s",
            remedy=f"add a node, then resume with `ray-recsys tune --resume --output {self._output}`",
        )
