"""Whether the cluster can hold the trainers and feed them, asked before anything starts; Ray would wait for ever."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ray

from ray_recsys.config import Recipe
from ray_recsys.errors import ClusterError

_WAIT_S = 3.0  # for CPUs that a stage before this one is just giving back
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


def check_resources(recipe: Recipe, num_workers: int | None = None) -> FeedResources:
    """Returns what the feed may use beside the trainers.

    Args:
        recipe: Its train and feed sections.
        num_workers: Train workers; None: the recipe's.

    Raises:
        ClusterError: The cluster, or what others leave of it, has too few CPUs or GPUs; says how many are missing.
    """
    num_workers = num_workers or recipe.train.num_workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    placement = _choose_placement(recipe, nodes)
    needed = {"CPU": num_workers * (recipe.train.cpus_per_worker + _MIN_TASK_CPUS)}
    if recipe.train.use_gpu:
        needed["GPU"] = float(num_workers)
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in needed}
    _check(needed, total, recipe, num_workers, "has")
    _check_nodes_hold(recipe, num_workers, nodes)
    _check(needed, _wait_for(needed), recipe, num_workers, "has free")
    spare = (total["CPU"] - num_workers * recipe.train.cpus_per_worker) / num_workers
    task_cpus = min(_MAX_TASK_CPUS[placement], spare)
    return FeedResources(placement, int(task_cpus * 100) / 100, max(1, int(spare / task_cpus)))


def _choose_placement(recipe: Recipe, nodes: list[dict[str, float]]) -> Literal["worker", "task"]:
    if recipe.feed.placement != "auto":
        return recipe.feed.placement
    has_cpu_nodes = any(node.get("CPU", 0) >= 1 and not node.get("GPU", 0) for node in nodes)
    return "task" if recipe.train.use_gpu and has_cpu_nodes else "worker"


def _check(needed: Mapping[str, float], there: Mapping[str, Any], recipe: Recipe, num_workers: int, verb: str) -> None:
    for name, amount in needed.items():
        if there.get(name, 0.0) + 1e-6 < amount:
            has = there.get(name, 0.0)
            each, keys = "one each", "train.num_workers"
            if name == "CPU":
                each = f"{recipe.train.cpus_per_worker:g} each, and {_MIN_TASK_CPUS:g} for Ray Data to feed each"
                keys += " or train.cpus_per_worker"
            raise ClusterError(
                f"{num_workers} train workers need {amount:g} {name}s ({each}), but the cluster {verb} {has:g}: "
                f"{amount - has:g} missing; lower {keys}, add nodes, or wait for other jobs to end"
            )


def _check_nodes_hold(recipe: Recipe, num_workers: int, nodes: list[dict[str, float]]) -> None:
    train = recipe.train
    room = sum(
        min(
            int((node.get("CPU", 0.0) + 1e-6) / train.cpus_per_worker),
            int(node.get("GPU", 0.0)) if train.use_gpu else num_workers,
        )
        for node in nodes
    )
    if room < num_workers:
        each = f"{train.cpus_per_worker:g} CPUs" + (" and a GPU" if train.use_gpu else "")
        raise ClusterError(
            f"{num_workers} train workers of {each} do not fit on the cluster's nodes, which hold {room}: a worker "
            "cannot be spread over nodes; lower train.num_workers or train.cpus_per_worker, or add nodes"
        )


def _wait_for(needed: Mapping[str, float]) -> Mapping[str, float]:
    end_s = time.monotonic() + _WAIT_S
    while True:
        free: dict[str, float] = ray.available_resources()
        if time.monotonic() > end_s or all(free.get(name, 0.0) + 1e-6 >= need for name, need in needed.items()):
            return free
        time.sleep(0.1)
