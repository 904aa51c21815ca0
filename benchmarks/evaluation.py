"""Users per second of full ranking: NeuMF (widths 64; 128-64-32) over 3,706 items, for 6,040 users.

    python -m benchmarks.evaluation [--json] [--check]

Two rates, measured alternately: the kernel in one process with a thread per core, which scores, ranks and sums metrics
of users in memory; and `evaluate` on a local Ray whose workers are warm, from the files to the result. A rate per wall
second is what a user waits for; one per CPU second, of all processes, tells on a busy machine too.
"""

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import psutil
import torch

from benchmarks.prepared_sets import write_set
from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.evaluation.protocols import evaluate_users
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.run import MODEL, finish_run, start_of, start_run
from ray_recsys.core.workflows.evaluate import evaluate
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.executor import RayExecutor

NUM_USERS, NUM_ITEMS, NUM_PARTITIONS, MEAN_LENGTH = 6_040, 3_706, 8, 165
RECIPE = Recipe(model=NeuMFRecipe(embedding_dim=64, mlp_layers=(128, 64, 32)))
KERNEL, PRODUCT = "kernel, one process", "product's evaluate"
TARGET = 1_000.0  # users per wall second, of both
RECBOLE = 357.0  # RecBole 1.2.1 on such a machine


def write_data(path: Path) -> PreparedSet:
    """Writes a prepared set of distinct pairs with a validation and a test item per user."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.geometric(1 / MEAN_LENGTH, NUM_USERS) + 20, 20, 1500)

    def make(users: Int64s) -> Histories:
        drawn = np.argsort(rng.random((len(users), NUM_ITEMS), np.float32), axis=1).astype(np.int32)
        training = np.concatenate([row[2 : 2 + lengths[user]] for row, user in zip(drawn, users, strict=True)])
        once = np.arange(len(users) + 1)
        return Histories(
            int(users[0]),
            Interactions(np.concatenate([[0], np.cumsum(lengths[users])]), training),
            Interactions(once, drawn[:, 0]),
            Interactions(once, drawn[:, 1]),
        )

    parts = np.array_split(np.arange(NUM_USERS), NUM_PARTITIONS)
    return write_set(path, map(make, parts), NUM_ITEMS, split={"method": "leave_one_out"})


def write_run(path: Path, prepared: PreparedSet) -> NeuMF:
    """Writes the run of an untrained model, whose scoring costs the same; returns the model."""
    assert isinstance(RECIPE.model, NeuMFRecipe)
    model = NeuMF(NUM_USERS, NUM_ITEMS, RECIPE.model, generator=torch.Generator().manual_seed(0))
    start_run(path, start_of(prepared, RECIPE))
    (path / MODEL).mkdir()
    model.export().save(path / MODEL)
    finish_run(path, num_epochs=1, best_epoch=1, metrics={})
    return model


def measure(directory: Path, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Returns users per wall second and per CPU second of each round, by name; a first round of each does not count."""
    prepared = write_data(directory / "data")
    model = write_run(directory / "run", prepared).export()
    parts = [prepared.read_partition(partition) for partition in range(NUM_PARTITIONS)]
    executor = RayExecutor("evaluate", RECIPE.cluster)

    def evaluate_part(part: Histories) -> None:
        torch.set_num_threads(1)
        evaluate_users(model, part, num_items=NUM_ITEMS, recipe=RECIPE.evaluate, split="test", seed=1)

    def kernel() -> None:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            for _ in threads.map(evaluate_part, parts):
                pass

    def product() -> None:
        evaluate([directory / "run"], prepared, RECIPE.evaluate, executor, seed=1, baselines=False)

    rates: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in (KERNEL, PRODUCT)}
    for turn in range(rounds + 1):
        for name, function in ((KERNEL, kernel), (PRODUCT, product)):
            wall_s, cpu_s = _timed(function)
            if turn:
                rates[name]["wall"].append(NUM_USERS / wall_s)
                rates[name]["cpu"].append(NUM_USERS / cpu_s)
    return rates


def _timed(function: Callable[[], None]) -> tuple[float, float]:
    """Returns wall seconds, and CPU seconds of this process and of its descendants."""
    start_s, before_s = time.perf_counter(), _cpu_seconds()
    function()
    return time.perf_counter() - start_s, max(1e-3, _cpu_seconds() - before_s)


def _cpu_seconds() -> float:
    process = psutil.Process()
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help=f"Exit 1 if a rate is below {TARGET:,.0f} users per wall second.")
@click.option("--rounds", default=5, show_default=True, help="Rounds of each.")
def main(*, as_json: bool, check: bool, rounds: int) -> None:
    """Measures users per second of full ranking."""
    with tempfile.TemporaryDirectory() as directory, connect("local"):
        rates = measure(Path(directory), rounds)
    medians = {name: {of: statistics.median(values) for of, values in by.items()} for name, by in rates.items()}
    if as_json:
        answer = {"users_per_s": rates, "medians": medians, "target": TARGET, "load": os.getloadavg()[0]}
        click.echo(json.dumps(answer))
    else:
        for name, by in medians.items():
            click.echo(f"{name:<22}{by['wall']:8,.0f} users/s{by['cpu']:8,.0f} per CPU second")
        click.echo(f"load average {os.getloadavg()[0]:.1f}; RecBole 1.2.1 on 2 cores: {RECBOLE:,.0f} users/s")
    missed = [name for name, by in medians.items() if by["wall"] < TARGET]
    if check and missed:
        raise SystemExit(f"target missed: {', '.join(missed)} below {TARGET:,.0f} users per wall second")


if __name__ == "__main__":
    main()
