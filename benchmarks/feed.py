"""Samples/s and first-batch latency of the epoch stream alone, at 1 M users; a sample is one (user, item) pair.

`worker` draws in one process per CPU, each a rank of its own, from histories that Ray Data streams; `task` draws in one
Ray Data task at a time for one rank, which shuffles. `cold` is the first epoch, which reads the histories and, in the
`worker` cases, starts Ray Data's processes; the other latencies are those of later epochs.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click
import numpy as np
import ray

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.config.files import load_recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.histories import Histories
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.feed import worker_feed
from ray_recsys.distributed.resources import FeedResources, require_workers
from ray_recsys.errors import ClusterError

TARGETS = {"worker": (10e6, 0.3), "task": (2e6, 2.0)}
"""Samples/s per core, seconds to the first batch of an epoch."""
MEAN_LENGTH, NUM_PARTITIONS = 10, 8


class Case(NamedTuple):
    """Ranks that run concurrently, and the CPUs that they and their tasks keep busy."""

    placement: Literal["worker", "task"]
    num_ranks: int
    num_cpus: int


CASES = (Case("worker", 1, 1), Case("worker", 2, 2), Case("task", 1, 2))


@click.command()
@click.option("--users", "num_users", default=1_000_000, show_default=True)
@click.option("--items", "num_items", default=100_000, show_default=True)
@click.option("--epochs", "num_epochs", default=3, show_default=True, help="Timed epochs after a first one.")
@click.option("--full-cluster", is_flag=True, help="Also time how long a start on a full cluster takes to fail.")
@click.option("--json", "as_json", is_flag=True)
@click.option("--check", is_flag=True, help="Exit 1 if a target is missed.")
def main(*, num_users: int, num_items: int, num_epochs: int, full_cluster: bool, as_json: bool, check: bool) -> None:
    """Times the feed."""
    with tempfile.TemporaryDirectory() as directory, connect("local", num_cpus=4):
        prepared = make_set(Path(directory) / "prepared", num_users, num_items)
        rows = [time_case(prepared, case, num_epochs) for case in CASES]
        failure_s = time_full_cluster() if full_cluster else None
    missed = [f"{row['placement']} on {row['cpus']}" for row in rows if not row["reached"]]
    if as_json:
        click.echo(json.dumps({"num_training": prepared.manifest.num_training, "rows": rows, "full_s": failure_s}))
    else:
        click.echo(
            f"{num_users:,} users, {num_items:,} items, {prepared.manifest.num_training:,} positives, 4 negatives"
        )
        click.echo("placement  CPUs  M samples/s a core  first batch s  cold first batch s")
        for row in rows:
            rate, first_s, cold_s = row["samples_per_s_per_core"] / 1e6, row["first_batch_s"], row["cold_first_batch_s"]
            click.echo(f"{row['placement']:<9}  {row['cpus']:>4}  {rate:>18.1f}  {first_s:>13.3f}  {cold_s:>18.2f}")
        if failure_s is not None:
            click.echo(f"a start on a full cluster fails after {failure_s:.2f} s")
    if check and missed:
        raise SystemExit(f"target missed: {', '.join(missed)}")


def make_set(path: Path, num_users: int, num_items: int) -> PreparedSet:
    """Writes a prepared set with power-law users and items and no held-out interactions."""
    rng = np.random.default_rng(0)
    parts = np.array_split(np.arange(num_users), NUM_PARTITIONS)
    return write_set(path, (_make_histories(rng, users, num_items) for users in parts), num_items)


def _make_histories(rng: np.random.Generator, users: Int64s, num_items: int) -> Histories:
    lengths = np.minimum(rng.zipf(1.9, len(users)) + MEAN_LENGTH - 3, 1000)
    rows = np.repeat(np.arange(len(users)), lengths)
    pairs = np.unique(rows * num_items + (num_items * rng.random(len(rows)) ** 3).astype(np.int64))
    offsets = np.searchsorted(pairs, np.arange(len(users) + 1) * num_items)
    return histories_of(int(users[0]), offsets, (pairs % num_items).astype(np.int32))


def time_case(prepared: PreparedSet, case: Case, num_epochs: int) -> dict[str, Any]:
    """Runs the ranks of a case concurrently."""
    run = ray.remote(_run_rank).options(num_cpus=0.5)
    size = case.num_ranks
    ranks = ray.get([run.remote(str(prepared.path), case.placement, r, size, num_epochs) for r in range(size)])
    rate = sum(rank["samples_per_s"] for rank in ranks) / case.num_cpus
    first_s = max(rank["first_batch_s"] for rank in ranks)
    target_rate, target_s = TARGETS[case.placement]
    return {
        "placement": case.placement,
        "cpus": case.num_cpus,
        "samples_per_s_per_core": rate,
        "first_batch_s": first_s,
        "cold_first_batch_s": max(rank["cold_first_batch_s"] for rank in ranks),
        "reached": rate >= target_rate and first_s <= target_s,
    }


def _run_rank(path: str, placement: Literal["worker", "task"], rank: int, size: int, num_epochs: int) -> dict[str, Any]:
    prepared = PreparedSet.open(Path(path))
    recipe = load_recipe(None, [f"train.epochs={num_epochs + 1}", "train.batch_size=16384"])
    epochs = worker_feed(prepared, recipe, FeedResources(placement, 0.5, 1), rank=rank, world_size=size)
    rates, firsts = [], []
    for epoch in range(1, num_epochs + 2):
        start_s, first_s, num_samples = time.perf_counter(), 0.0, 0
        for batch in epochs.batches(epoch):
            first_s = first_s or time.perf_counter() - start_s
            num_samples += batch.item_idx.size
        rates.append(num_samples / (time.perf_counter() - start_s))
        firsts.append(first_s)
    epochs.close()
    return {
        "samples_per_s": statistics.median(rates[1:]),
        "first_batch_s": statistics.median(firsts[1:]),
        "cold_first_batch_s": firsts[0],
    }


def time_full_cluster() -> float:
    """Returns the seconds until a start fails whose workers would hold every CPU."""
    start_s = time.perf_counter()
    try:
        require_workers(load_recipe(None, ["cluster.cpus_per_worker=1", "cluster.num_workers=4"]).cluster)
    except ClusterError:
        return time.perf_counter() - start_s
    raise AssertionError("4 workers of 1 CPU leave Ray Data nothing on 4 CPUs")


if __name__ == "__main__":
    main()
