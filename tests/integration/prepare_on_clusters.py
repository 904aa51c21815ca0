"""Prepares one log on clusters of several shapes and prints a digest of each result; run by test_prepare_cluster.

A separate process, because a process has one Ray: python -m tests.integration.prepare_on_clusters LOG WORK SHAPE...
A shape is the number of CPUs of one node, or `lose-a-node`: 3 nodes, one of which is killed once the log is read.
"""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ray_recsys.config import ClusterRecipe, PrepareRecipe, Recipe
from ray_recsys.core.artifact import MANIFEST
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.executor import RayExecutor

RECIPE = Recipe(prepare=PrepareRecipe(min_interactions_per_user=2, min_interactions_per_item=2, num_partitions=6))
EXECUTOR = RayExecutor("prepare", ClusterRecipe())
WAIT_S = 30.0
# A dead node is detected in about 2 s instead of 30 s.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def digests(prepared: Path) -> dict[str, str]:
    """Returns the sha256 of every file but the manifest, which holds the time of its creation."""
    files = sorted(path for path in prepared.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(prepared)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepare_on_one_node(log: Path, output: Path, num_cpus: int) -> dict[str, object]:
    with connect("local", num_cpus=num_cpus):
        prepare([str(log)], output, RECIPE, EXECUTOR)
    return {"files": digests(output)}


def prepare_losing_a_node(log: Path, output: Path) -> dict[str, object]:
    """The head has no CPU, so that all tasks are on the 3 nodes; the driver is not on the one that is killed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": HEALTH})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
        cluster.wait_for_nodes(timeout=WAIT_S)
        lost: list[str] = []

        def kill_once_read(event: object) -> None:
            """Rows are then in the object stores of all nodes, and nothing of the rest has begun."""
            if str(event).startswith("read ") and not lost:
                cluster.remove_node(nodes[0], allow_graceful=False)
                lost.append(nodes[0].node_id)

        with connect(cluster.address):
            executor = RayExecutor("prepare", ClusterRecipe())
            prepare([str(log)], output, RECIPE, executor, report=kill_once_read)
            alive = sum(node["Alive"] for node in ray.nodes())
        return {"files": digests(output), "num_lost": len(lost), "num_alive": alive}
    finally:
        cluster.shutdown()


def main() -> None:
    logging.getLogger("ray").setLevel(logging.ERROR)
    log, work, *shapes = sys.argv[1:]
    results = {}
    for shape in shapes:
        output = Path(work) / f"prepared-{shape}"
        if shape == "lose-a-node":
            results[shape] = prepare_losing_a_node(Path(log), output)
        else:
            results[shape] = prepare_on_one_node(Path(log), output, int(shape))
    sys.stdout.write(json.dumps(results) + "\n")
    sys.stdout.flush()
    os._exit(0)  # the threads of a cluster that lost a node may not end


if __name__ == "__main__":
    main()
