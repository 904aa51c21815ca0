"""Checks that the cluster has the CPUs and GPUs a command needs before it starts; Ray would wait forever, silently."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray

from ray_recsys.config import ClusterRecipe
from ray_recsys.errors import ClusterError
from ray_recsys.progress import Reporter, silent

_TOLERANCE = 1e-6  # of sums of fractional CPUs
_WAIT_S = 3.0  # for CPUs that an earlier stage is releasing
_MIN_TASK_CPUS = 0.25
_MAX_TASK_CPUS = {"worker": 0.5, "device": 0.5, "task": 1.0}
_STARTED_CPUS = 2.0  # that each worker's feed asks for where nodes start on demand: they feed 20 M samples/s
_SCALE_UP = "where nodes start on demand, set cluster.wait_for_nodes"


@dataclass(frozen=True, slots=True)
class FeedResources:
    """Where negatives are drawn, and Ray Data's resources for feeding one worker.

    Each worker's tasks have CPUs of their own: if one worker's tasks could take all of them, a worker waiting for
    another's gradient would hold the CPUs that the other's batches need.
    """

    placement: Literal["worker", "task", "device"]
    task_cpus: float
    num_tasks: int
    """Concurrent tasks of one worker's feed."""


def require_cpu(command: str, cluster: ClusterRecipe, *, report: Reporter = silent) -> None:
    """Checks that one task of a command can start; further tasks use resources as they become free.

    Args:
        command: Named in the error.
        cluster: Whether to wait for nodes that start on demand.
        report: Receives what is missing if the command waits.

    Raises:
        ClusterError: No CPU is free.
    """
    free = _free_resources({"CPU": 1.0}).get("CPU", 0.0)
    if free + _TOLERANCE >= 1.0:
        return
    total = ray.cluster_resources().get("CPU", 0.0)
    missing = f"{command} needs 1 CPU, but the cluster has free {free:g} of {total:g}"
    if not cluster.wait_for_nodes:
        raise ClusterError(missing, remedy=f"wait for other jobs to end, end them, or add nodes; {_SCALE_UP}")
    report(f"waiting for nodes: {missing}")


def require_workers(cluster: ClusterRecipe, *, report: Reporter = silent) -> FeedResources:
    """Checks that the train workers fit on the cluster with their feed.

    Args:
        cluster: The workers and their CPUs, and whether to wait for nodes that start on demand.
        report: Receives what is missing if training waits.

    Returns:
        Resources of each worker's feed.

    Raises:
        ClusterError: The cluster, or what other jobs leave of it, has too few CPUs or GPUs.
    """
    nodes = _nodes()
    try:
        _check_workers(cluster, nodes)
    except ClusterError as error:
        if not cluster.wait_for_nodes:
            raise
        report(f"waiting for nodes: {error.message}")
    placement = _choose_placement(cluster, nodes)
    spare = sum(node.get("CPU", 0.0) for node in nodes) / cluster.num_workers - cluster.cpus_per_worker
    if placement == "task" and cluster.wait_for_nodes:
        spare = max(spare, _STARTED_CPUS)
    task_cpus = min(_MAX_TASK_CPUS[placement], max(_MIN_TASK_CPUS, spare))
    return FeedResources(placement, int(task_cpus * 100) / 100, max(1, int(spare / task_cpus)))


def _nodes() -> list[dict[str, float]]:
    """Returns the resources of each living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _free_resources(needed: Mapping[str, float]) -> Mapping[str, float]:
    """Returns the cluster's free resources: as soon as they suffice, otherwise those of 3 seconds later."""
    end_s = time.monotonic() + _WAIT_S
    while True:
        free: dict[str, float] = ray.available_resources()
        if time.monotonic() > end_s or all(free.get(name, 0.0) + _TOLERANCE >= need for name, need in needed.items()):
            return free
        time.sleep(0.1)


def _choose_placement(cluster: ClusterRecipe, nodes: list[dict[str, float]]) -> Literal["worker", "task", "device"]:
    """Returns where negatives are drawn: with GPU workers in tasks, if CPU nodes are there or start for the tasks."""
    if cluster.placement != "auto":
        return cluster.placement
    has_cpu_nodes = any(node.get("CPU", 0) >= 1 and not node.get("GPU", 0) for node in nodes)
    return "task" if cluster.use_gpu and (has_cpu_nodes or cluster.wait_for_nodes) else "worker"


def describe_missing(cluster: ClusterRecipe) -> str:
    """Returns the workers' requirements and the cluster's resources, as text."""
    nodes = _nodes()
    names = ["CPU", *(["GPU"] if cluster.use_gpu else [])]
    total = ", ".join(f"{sum(node.get(name, 0.0) for node in nodes):g} {name}s" for name in names)
    return (
        f"{cluster.least_workers} train workers of {cluster.worker_text} find no room on the cluster's {len(nodes)} "
        f"nodes, which have {total}"
    )


def _check_workers(cluster: ClusterRecipe, nodes: list[dict[str, float]]) -> None:
    needed = {"CPU": cluster.least_workers * (cluster.cpus_per_worker + _MIN_TASK_CPUS)}
    if cluster.use_gpu:
        needed["GPU"] = float(cluster.least_workers)
    _check_amounts(needed, {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}, cluster, "has")
    _check_nodes_hold(cluster, nodes)
    _check_amounts(needed, _free_resources(needed), cluster, "has free")


def num_workers_that_fit(needed: Mapping[str, float]) -> int:
    """Returns how many workers that need so much each the living nodes hold, if nothing else used them."""
    return _num_that_fit(needed, _nodes())


def _num_that_fit(needed: Mapping[str, float], nodes: list[dict[str, float]]) -> int:
    return sum(
        min(int((node.get(name, 0.0) + _TOLERANCE) / amount) for name, amount in needed.items()) for node in nodes
    )


def _check_amounts(needed: Mapping[str, float], there: Mapping[str, Any], cluster: ClusterRecipe, verb: str) -> None:
    for name, amount in needed.items():
        has = there.get(name, 0.0)
        if has + _TOLERANCE >= amount:
            continue
        each, keys = "one each", "cluster.num_workers"
        if name == "CPU":
            each = f"{cluster.cpus_per_worker:g} each, and {_MIN_TASK_CPUS:g} for Ray Data to feed each"
            keys += " or cluster.cpus_per_worker"
        raise ClusterError(
            f"{cluster.least_workers} train workers need {amount:g} {name}s ({each}), but the cluster {verb} {has:g}: "
            f"{amount - has:g} missing",
            remedy=f"lower {keys}, add nodes, or wait for other jobs to end; {_SCALE_UP}",
        )


def _check_nodes_hold(cluster: ClusterRecipe, nodes: list[dict[str, float]]) -> None:
    room = _num_that_fit({"CPU": cluster.cpus_per_worker} | ({"GPU": 1.0} if cluster.use_gpu else {}), nodes)
    if room < cluster.least_workers:
        raise ClusterError(
            f"{cluster.least_workers} train workers of {cluster.worker_text} do not fit on the cluster's nodes, which "
            f"hold {room}: a worker cannot span nodes",
            remedy="lower cluster.num_workers or cluster.cpus_per_worker, or add nodes",
        )
