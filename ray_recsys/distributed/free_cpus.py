"""What the cluster has free, asked before anything starts: Ray itself would wait for ever, without a word."""

import time
from collections.abc import Mapping

import ray

from ray_recsys.errors import ClusterError
from ray_recsys.progress import Reporter, silent

TOLERANCE = 1e-6  # sums of fractions of CPUs
_WAIT_S = 3.0  # for CPUs that a stage before this one is just giving back


def free_resources(needed: Mapping[str, float]) -> Mapping[str, float]:
    """Returns the cluster's free resources: at once if they suffice, else as they are after 3 seconds."""
    end_s = time.monotonic() + _WAIT_S
    while True:
        free: dict[str, float] = ray.available_resources()
        if time.monotonic() > end_s or all(free.get(name, 0.0) + TOLERANCE >= need for name, need in needed.items()):
            return free
        time.sleep(0.1)


def require_cpu(command: str, *, wait_for_nodes: bool | None = None, report: Reporter = silent) -> None:
    """Checks that one task of a command can start; more of them use whatever comes free.

    Args:
        command: That asks, for the message.
        wait_for_nodes: `cluster.wait_for_nodes`: what is missing is reported and waited for; None: no recipe says.
        report: Told what is missing where the recipe says that nodes may come.

    Raises:
        ClusterError: No CPU is free; says what is there, and what to do.
    """
    free = free_resources({"CPU": 1.0}).get("CPU", 0.0)
    if free + TOLERANCE >= 1.0:
        return
    missing = f"{command} needs 1 CPU, but the cluster has free {free:g} of {ray.cluster_resources().get('CPU', 0.0):g}"
    if wait_for_nodes:
        report(f"waiting for nodes: {missing}")
        return
    remedy = "wait for other jobs to end, end them, or add nodes"
    if wait_for_nodes is not None:
        remedy += "; where nodes start on demand, set cluster.wait_for_nodes"
    raise ClusterError(f"{missing}; {remedy}")
