"""Trains on two nodes, one worker on each, and removes one of them after the second epoch; run as a program.

It is a process of its own, since a process can join only one cluster, and the tests' session has joined one.
"""

import sys
import threading
import time
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from ray_recsys.config.files import load_recipe
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.training import train
from ray_recsys.errors import RecsysError


def main(data: Path, run: Path, recipe_file: Path) -> None:
    """Prints a line per event, then `error: …` or `done`."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)  # before there is a second node that it could join instead
    second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    recipe = load_recipe(recipe_file)

    def remove_the_second() -> None:
        while not (run / "curves.csv").exists() or len((run / "curves.csv").read_text().splitlines()) < 3:
            time.sleep(0.05)
        print("removing a node", flush=True)  # noqa: T201
        cluster.remove_node(second, allow_graceful=False)

    threading.Thread(target=remove_the_second, daemon=True).start()
    try:
        train(data, run, recipe, RayExecutor("train", recipe.cluster), report=lambda event: print(event, flush=True))  # noqa: T201
        print("done", flush=True)  # noqa: T201
    except RecsysError as error:
        print(f"error: {error}", flush=True)  # noqa: T201
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
