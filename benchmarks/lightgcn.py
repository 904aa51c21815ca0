"""LightGCN on a graph of Gowalla's shape (30,000 users, 41,000 items, 0.8 M interactions): time of an epoch, memory.

    python -m benchmarks.lightgcn [--json] [--check] [--steps 20]

One process with a thread per core trains by `jobs/recipes/gowalla-lightgcn.toml`. An epoch's time is the median step's
times the number of steps, since all steps cost the same; a first one does not count. CPU seconds are meaningful on a
busy machine too. Memory is the process's peak, reading of the data and export of the model included.
"""

import json
import os
import resource
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.config.files import load_recipe
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.lightgcn import build
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.trainer import Trainer

NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS, NUM_PARTITIONS = 30_000, 41_000, 800_000, 4
MIN_LENGTH = 8
RECIPE = Path(__file__).parents[1] / "jobs/recipes/gowalla-lightgcn.toml"
MAX_EPOCH_S, MAX_GB = 300.0, 4.0


@dataclass(frozen=True, slots=True)
class Result:
    """Measurements."""

    steps_per_epoch: int
    epoch_s: float
    epoch_cpu_s: float
    """CPU seconds of an epoch, all threads."""
    peak_gb: float
    num_threads: int


def write_data(path: Path) -> PreparedSet:
    """Writes the graph: users of geometric lengths, items by a shifted Zipf law, distinct pairs."""
    rng = np.random.default_rng(0)
    weights = 1 / (50 + np.arange(NUM_ITEMS))
    cumulative = np.cumsum(weights / weights.sum())
    lengths = MIN_LENGTH + rng.geometric(1 / (NUM_INTERACTIONS / NUM_USERS - MIN_LENGTH + 1), NUM_USERS) - 1
    names = rng.permutation(NUM_ITEMS).astype(np.int32)

    def make(first: int, last: int) -> Histories:
        rows = np.repeat(np.arange(last - first), lengths[first:last])
        drawn = np.searchsorted(cumulative, rng.random(len(rows))).clip(max=NUM_ITEMS - 1)
        pairs = np.unique(rows * NUM_ITEMS + drawn)
        offsets = np.searchsorted(pairs // NUM_ITEMS, np.arange(last - first + 1))
        return histories_of(first, offsets, names[pairs % NUM_ITEMS])

    bounds = np.linspace(0, NUM_USERS, NUM_PARTITIONS + 1).astype(int)
    return write_set(path, (make(a, b) for a, b in pairwise(bounds)), NUM_ITEMS)


def measure(directory: Path, num_steps: int) -> Result:
    """Trains a few steps and exports the model."""
    num_threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(num_threads)
    prepared, recipe = write_data(directory / "data"), load_recipe(RECIPE)
    feed, model = local_feed(prepared, recipe), build(prepared, recipe)
    trainer = Trainer(model, recipe.train, steps_per_epoch=feed.plan.num_steps)
    wall, cpu = [], []
    for batch in islice(feed.batches(1), num_steps + 1):
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        trainer.step(batch)
        wall.append(time.perf_counter() - start_s)
        cpu.append(time.process_time() - start_cpu_s)
    feed.close()
    model.export()
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    epoch_s, epoch_cpu_s = (feed.plan.num_steps * statistics.median(times[1:]) for times in (wall, cpu))
    return Result(feed.plan.num_steps, epoch_s, epoch_cpu_s, peak_gb, num_threads)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help=f"Exit 1 at {MAX_EPOCH_S:g} s an epoch, or {MAX_GB:g} GB, or more.")
@click.option("--steps", default=20, show_default=True, help="Timed optimizer steps.")
def main(*, as_json: bool, check: bool, steps: int) -> None:
    """Measures an epoch's time and the peak memory of LightGCN on a graph of Gowalla's shape."""
    with tempfile.TemporaryDirectory() as directory:
        result = measure(Path(directory), steps)
    if as_json:
        click.echo(json.dumps(asdict(result)))
    else:
        click.echo(
            f"{result.steps_per_epoch} steps an epoch: {result.epoch_s:.0f} s, {result.epoch_cpu_s:.0f} CPU seconds on "
            f"{result.num_threads} threads; peak memory {result.peak_gb:.2f} GB"
        )
    if check and (result.epoch_s >= MAX_EPOCH_S or result.peak_gb >= MAX_GB):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
