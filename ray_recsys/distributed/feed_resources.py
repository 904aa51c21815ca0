"""Whether the cluster can hold the trainers and feed them, asked before anything starts; Ray would wait for ever."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray

from ray_recsys.config import ClusterRecipe
from ray_recsys.distributed.free_cpus import TOLERANCE, free_resources
from ray_recsys.errors import ClusterError
from ray_recsys.progress import Reporter, silent

_MIN_TASK_CPUS = 0.25
_MAX_TASK_CPUS = {"worker": 0.5, "task": 1.0}


@dataclass(frozen=True, slots=True)
class FeedResources:
    """Where negatives are drawn, and what Ray Data gets for one worker's feed.

    Each worker's tasks have CPUs of their own: if those of one could take all, a worker that waits for another's
    gradient would hold the CPUs that the other's batches need.
    """

    placement: Literal["worker", "task"]
    task_cpus: float
    num_tasks: int
    """Tasks of one worker's feed at a time."""


def check_resources(cluster: ClusterRecipe, *, report: Reporter = silent) -> FeedResources:
    """Returns what the feed may use beside the trainers.

    Args:
        cluster: Workers and their CPUs.
        report: Told what is missing where the recipe says that nodes may come.

    Raises:
        ClusterError: The cluster, or what others leave of it, has too few CPUs or GPUs; says how many are missing.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    try:
        _check(cluster, nodes)
    except ClusterError as error:
        if not cluster.wait_for_nodes:
            raise
        report(f"waiting for nodes: {str(error).partition(';')[0]}")
    placement = _choose_placement(cluster, nodes)
    spare = sum(node.get("CPU", 0.0) for node in nodes) / cluster.num_workers - cluster.cpus_per_worker
    task_cpus = min(_MAX_TASK_CPUS[placement], max(_MIN_TASK_CPUS, spare))
    return FeedResources(placement, int(task_cpus * 100) / 100, max(1, int(spare / task_cpus)))


def _choose_placement(cluster: ClusterRecipe, nodes: list[dict[str, float]]) -> Literal["worker", "task"]:
    if cluster.placement != "auto":
        return cluster.placement
    has_cpu_nodes = any(node.get("CPU", 0) >= 1 and not node.get("GPU", 0) for node in nodes)
    return "task" if cluster.use_gpu and has_cpu_nodes else "worker"


def _check(cluster: ClusterRecipe, nodes: list[dict[str, float]]) -> None:
    needed = {"CPU": cluster.num_workers * (cluster.cpus_per_worker + _MIN_TASK_CPUS)}
    if cluster.use_gpu:
        needed["GPU"] = float(cluster.num_workers)
    _check_amounts(needed, {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}, cluster, "has")
    _check_nodes_hold(cluster, nodes)
    _check_amounts(needed, free_resources(needed), cluster, "has free")


def _check_amounts(needed: Mapping[str, float], there: Mapping[str, Any], cluster: ClusterRecipe, verb: str) -> None:
    for name, amount in needed.items():
        has = there.get(name, 0.0)
        if has + TOLERANCE >= amount:
            continue
        each, keys = "one each", "cluster.num_workers"
        if name == "CPU":
            each = f"{cluster.cpus_per_worker:g} each, and {_MIN_TASK_CPUS:g} for Ray Data to feed each"
            keys += " or cluster.cpus_per_worker"
        raise ClusterError(
            f"{cluster.num_workers} train workers need {amount:g} {name}s ({each}), but the cluster {verb} {has:g}: "
            f"{amount - has:g} missing; lower {keys}, add nodes, or wait for other jobs to end; "
            "where nodes start on demand, set cluster.wait_for_nodes"
        )


def _check_nodes_hold(cluster: ClusterRecipe, nodes: list[dict[str, float]]) -> None:
    room = sum(
        min(
            int((node.get("CPU", 0.0) + TOLERANCE) / cluster.cpus_per_worker),
            int(node.get("GPU", 0.0)) if cluster.use_gpu else cluster.num_workers,
        )
        for node in nodes
    )
    if room < cluster.num_workers:
        each = f"{cluster.cpus_per_worker:g} CPUs" + (" and a GPU" if cluster.use_gpu else "")
        raise ClusterError(
            f"{cluster.num_workers} train workers of {each} do not fit on the cluster's nodes, which hold {room}: a "
            "worker cannot be spread over nodes; lower cluster.num_workers or cluster.cpus_per_worker, or add nodes"
        )
