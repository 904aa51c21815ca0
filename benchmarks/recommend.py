"""Users/s of `recommend` at the size of MovieLens-1M: python -m benchmarks.recommend [--json] [--check].

All 6,040 users of a bundle of the shape of MovieLens-1M (NeuMF, widths 64 and 128-64-32; 165 seen items a user) get
100 of 500 candidates, as Parquet files, on a local Ray. The first run starts processes and opens the bundle; the others
find them. Every list is compared with what a request of one user gets.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq

from benchmarks.serve_load_bundle import write_registry
from ray_recsys.config import ClusterRecipe
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.workflows.recommend import recommend
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.executor import RayExecutor

MIN_USERS_PER_S = 1_500
K, NUM_CANDIDATES = 100, 500


def run(registry: Path, work: Path, repeats: int, num_cpus: int) -> list[float]:
    """Returns the seconds of each run; the output of the first stays in `work`."""
    home, seconds = Registry(registry), []
    bundle = home.locate(home.current())
    with connect("local", num_cpus=num_cpus):
        executor = RayExecutor("recommend", ClusterRecipe())
        for number in range(1 + repeats):
            start_s = time.perf_counter()
            recommend(bundle, work / f"lists-{number}", executor, num_candidates=NUM_CANDIDATES, k=K)
            seconds.append(time.perf_counter() - start_s)
            click.echo(f"run {number}: {seconds[-1]:.2f} s", err=True)
    return seconds


def num_different(registry: Path, lists: Path, num_users: int) -> int:
    """Returns how many of the first users have other items, or another order, than a request of one user gets."""
    recommender = Recommender(Registry(registry).open())
    written = pq.read_table(lists, columns=["item_id"])["item_id"].to_numpy().reshape(-1, K)
    answers = (recommender.recommend(Query(user, k=K, num_candidates=NUM_CANDIDATES)) for user in range(num_users))
    return sum(not np.array_equal(answer.item_idx, row) for answer, row in zip(answers, written, strict=False))


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Runs after the first.")
@click.option("--num-cpus", default=2, show_default=True)
@click.option("--compared", default=6040, show_default=True, help="Users whose lists are compared.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--check", is_flag=True, help="Exit 1 if the target is missed.")
def main(*, repeats: int, num_cpus: int, compared: int, as_json: bool, check: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        registry = write_registry(work)
        first, *others = run(registry, work, repeats, num_cpus)
        num_users = Registry(registry).open().manifest.num_users
        size = sum(path.stat().st_size for path in (work / "lists-0").glob("*.parquet"))
        different = num_different(registry, work / "lists-0", compared)
    result: dict[str, Any] = {
        "users_per_s": round(num_users / statistics.median(others)),
        "first_run_users_per_s": round(num_users / first),
        "bytes_per_user": round(size / num_users),
        "lists_compared": compared,
        "lists_that_differ": different,
    }
    click.echo(json.dumps(result) if as_json else "  ".join(f"{name} {value}" for name, value in result.items()))
    if check and result["users_per_s"] < MIN_USERS_PER_S:
        sys.exit(1)


if __name__ == "__main__":
    main()
