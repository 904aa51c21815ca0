"""Whether the cluster can hold the trainers and feed them, asked before anything starts; Ray would wait for ever."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray

from ray_recsys.config import Recipe, TrainRecipe
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


def check_resources(recipe: Recipe, *, report: Reporter = silent) -> FeedResources:
    """Returns what the feed may use beside the trainers.

    Args:
        recipe: Its train and feed sections.
        report: Told what is missing where the recipe says that nodes may come.

    Raises:
        ClusterError: The cluster, or what others leave of it, has too few CPUs or GPUs; says how many are missing.
    """
    train = recipe.train
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    try:
        _check(recipe, nodes)
    except ClusterError as error:
        if not train.wait_for_nodes:
            raise
        report(f"waiting for nodes: {str(error).partition(';')[0]}")
    placement = _choose_placement(recipe, nodes)
    spare = sum(node.get("CPU", 0.0) for node in nodes) / train.num_workers - train.cpus_per_worker
    task_cpus = min(_MAX_TASK_CPUS[placement], max(_MIN_TASK_CPUS, spare))
    return FeedResources(placement, int(task_cpus * 100) / 100, max(1, int(spare / task_cpus)))


def _choose_placement(recipe: Recipe, nodes: list[dict[str, float]]) -> Literal["worker", "task"]:
    if recipe.feed.placement != "auto":
        return recipe.feed.placement
    has_cpu_nodes = any(node.get("CPU", 0) >= 1 and not node.get("GPU", 0) for node in nodes)
    return "task" if recipe.train.use_gpu and has_cpu_nodes else "worker"


def _check(recipe: Recipe, nodes: list[dict[str, float]]) -> None:
    train = recipe.train
    needed = {"CPU": train.num_workers * (train.cpus_per_worker + _MIN_TASK_CPUS)}
    if train.use_gpu:
        needed["GPU"] = float(train.num_workers)
    _check_amounts(needed, {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}, train, "has")
    _check_nodes_hold(train, nodes)
    _check_amounts(needed, free_resources(needed), train, "has free")


def _check_amounts(needed: Mapping[str, float], there: Mapping[str, Any], train: TrainRecipe, verb: str) -> None:
    for name, amount in needed.items():
        has = there.get(name, 0.0)
        if has + TOLERANCE >= amount:
            continue
        each, keys = "one each", "train.num_workers"
        if name == "CPU":
            each = f"{train.cpus_per_worker:g} each, and {_MIN_TASK_CPUS:g} for Ray Data to feed each"
            keys += " or train.cpus_per_worker"
        raise ClusterError(
            f"{train.num_workers} train workers need {amount:g} {name}s ({each}), but the cluster {verb} {has:g}: "
            f"{amount - has:g} missing; lower {keys}, add nodes, or wait for other jobs to end; "
            "where nodes start on demand, set train.wait_for_nodes"
        )


def _check_nodes_hold(train: TrainRecipe, nodes: list[dict[str, float]]) -> None:
    room = sum(
        min(
            int((node.get("CPU", 0.0) + TOLERANCE) / train.cpus_per_worker),
            int(node.get("GPU", 0.0)) if train.use_gpu else train.num_workers,
        )
        for node in nodes
    )
    if room < train.num_workers:
        each = f"{train.cpus_per_worker:g} CPUs" + (" and a GPU" if train.use_gpu else "")
        raise ClusterError(
            f"{train.num_workers} train workers of {each} do not fit on the cluster's nodes, which hold {room}: a "
            "worker cannot be spread over nodes; lower train.num_workers or train.cpus_per_worker, or add nodes"
        )
