"""Training steps, memory, traffic and checkpoints over the number of users: does the cost follow the batch?

Workers are processes of a gloo group on this machine, without Ray. Each has the rows of its share of the users and
takes steps on made-up batches: 4,096 positives over all workers with 4 uniform negatives each, users uniform, items by
popularity. The model is that of `train_throughput`, the items are 100,000. In every run a small model (6,040 users,
3,706 items) alternates steps with the large one, so that both see the same load; the target is a ratio of them.
"""

import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import torch
import torch.distributed as dist

from ray_recsys.config import NeuMFRecipe, TrainRecipe
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.checkpoint import save_checkpoint
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.process import prepare_process
from ray_recsys.core.training.trainer import Trainer

RECIPE = NeuMFRecipe(embedding_dim=64, mlp_layers=(128, 64, 32))
SMALL, NUM_ITEMS, NUM_NEGATIVES, BATCH = (6_040, 3_706), 100_000, 4, 4_096
STEPS, ROUNDS, NUM_BATCHES = 10, 5, 20
CHECKED_USERS, TARGET = 1_000_000, 0.7  # rate over that of the small model


@dataclass(frozen=True, slots=True)
class Measurement:
    """One number of users and of workers."""

    optimizer: str
    num_users: int
    num_items: int
    num_workers: int
    samples_per_s: float
    """Of all workers."""
    ratio_to_small: float
    peak_bytes: int
    """Resident, of the largest worker."""
    sent_bytes: float
    """Passed to collectives by a worker at each step."""
    checkpoint_s: float
    """To write it to this machine's disk, its digests included."""


def make_batches(num_users: int, num_items: int, rank: int, size: int) -> list[Batch]:
    """Returns a worker's batches, with users of its own share."""
    rng, first, end = np.random.default_rng(rank), num_users * rank // size, num_users * (rank + 1) // size
    chances = 1 / (10 + np.arange(num_items))
    ends = np.cumsum(chances / chances.sum())
    batches = []
    for _ in range(NUM_BATCHES):
        items = rng.integers(0, num_items, (BATCH // size, 1 + NUM_NEGATIVES), np.int32)
        items[:, 0] = np.minimum(np.searchsorted(ends, rng.random(len(items))), num_items - 1)
        users, weight = rng.integers(first, end, len(items)), np.ones(len(items), np.float32)
        batches.append(Batch(users, items, weight, None, BATCH // size * size))
    return batches


class Worker:
    """A trainer and its batches."""

    def __init__(self, num_users: int, num_items: int, optimizer: str, rank: int, size: int) -> None:
        train = TrainRecipe.model_validate({"optimizer": optimizer})
        is_sparse = optimizer == "sparse_adam"
        users = range(num_users * rank // size, num_users * (rank + 1) // size) if is_sparse else range(num_users)
        model = NeuMF(
            len(users),
            num_items,
            RECIPE,
            train,
            generator=torch.Generator().manual_seed(1),
            first_user=users.start if is_sparse else None,
        )
        self.trainer = Trainer(model, train, wrap=data_parallel, users=users if is_sparse else None)
        self._batches = make_batches(num_users, num_items, rank, size)
        self._size = size

    def run(self) -> float:
        """Returns samples per second, of all workers, of some steps."""
        if dist.is_initialized():
            dist.barrier()
        start_s = time.perf_counter()
        for step in range(STEPS):
            self.trainer.step(self._batches[step % NUM_BATCHES])
        return STEPS * BATCH * (1 + NUM_NEGATIVES) / (time.perf_counter() - start_s)


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """Yields a list that gets the bytes of each tensor that this process passes to a collective."""
    sent: list[int] = []
    gather, reduce = dist.all_gather_into_tensor, dist.all_reduce

    def counted_gather(output: Any, tensor: Any, *args: Any, **keys: Any) -> Any:
        sent.append(tensor.nbytes)
        return gather(output, tensor, *args, **keys)

    def counted_reduce(tensor: Any, *args: Any, **keys: Any) -> Any:
        sent.append(tensor.nbytes)
        return reduce(tensor, *args, **keys)

    with (
        patch.object(dist, "all_gather_into_tensor", counted_gather),
        patch.object(dist, "all_reduce", counted_reduce),
    ):
        yield sent


@dataclass(frozen=True, slots=True)
class Setting:
    """Measurements of a group of workers."""

    num_users: int
    num_workers: int
    optimizer: str
    num_threads: int
    """Of all workers together."""


def work(rank: int, setting: Setting, directory: Path) -> None:
    """Measures as one worker of a group; writes a JSON file."""
    size, optimizer = setting.num_workers, setting.optimizer
    prepare_process(max(1, setting.num_threads // size))
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{directory}/group", rank=rank, world_size=size)
    small, large = Worker(*SMALL, optimizer, rank, size), Worker(setting.num_users, NUM_ITEMS, optimizer, rank, size)
    rates: dict[str, list[float]] = {"small": [], "large": []}
    small.run()
    large.run()
    for _ in range(ROUNDS):
        rates["small"].append(small.run())
        rates["large"].append(large.run())
    with counted_bytes() as sent:
        large.run()
    (directory / f"checkpoint-{rank}").mkdir()
    start_s = time.perf_counter()
    if rank == 0 or optimizer == "sparse_adam":
        save_checkpoint(large.trainer, directory / f"checkpoint-{rank}", directory / f"best-{rank}")
    found = {
        **rates,
        "checkpoint_s": time.perf_counter() - start_s,
        "sent_bytes": sum(sent) / STEPS,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    (directory / f"{rank}.json").write_text(json.dumps(found), encoding="utf8")
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def measure(setting: Setting, folder: Path | None) -> Measurement:
    """Runs a group of workers."""
    size = setting.num_workers
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="train-scale-", dir=folder) as path:
        directory = Path(path)
        workers = [spawn.Process(target=work, args=(rank, setting, directory)) for rank in range(size)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            raise SystemExit(f"a worker failed at {setting.num_users:,} users with {size} workers")
        parts = [json.loads((directory / f"{rank}.json").read_text(encoding="utf8")) for rank in range(size)]
    small, large = (statistics.median(parts[0][name]) for name in ("small", "large"))
    return Measurement(
        setting.optimizer, setting.num_users, NUM_ITEMS, size, large, large / small,
        **{name: max(part[name] for part in parts) for name in ("peak_bytes", "sent_bytes", "checkpoint_s")},
    )  # fmt: skip


def write_plot(measurements: list[Measurement], path: Path) -> None:
    """Writes rate, memory, traffic and checkpoint time over users, a line per number of workers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels: dict[str, Callable[[Measurement], float]] = {
        "rate / rate at 6,040 x 3,706": lambda m: m.ratio_to_small,
        "peak GB of a worker": lambda m: m.peak_bytes / 1e9,
        "MB sent per step and worker": lambda m: m.sent_bytes / 1e6,
        "checkpoint, s": lambda m: m.checkpoint_s,
    }
    for axes, (label, value) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for kind in sorted({(m.optimizer, m.num_workers) for m in measurements}):
            points = sorted((m.num_users, value(m)) for m in measurements if (m.optimizer, m.num_workers) == kind)
            axes.plot(*zip(*points, strict=True), "o-", label=f"{kind[0]}, {kind[1]} worker{'s' * (kind[1] > 1)}")
        axes.set(xscale="log", xlabel="users", ylabel=label, ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path)


@click.command()
@click.option("--users", default="100000,1000000,5000000", show_default=True, help="Users, separated by commas.")
@click.option("--workers", default="1,2", show_default=True, help="Numbers of workers.")
@click.option("--optimizer", "optimizers", multiple=True, default=("sparse_adam",), show_default=True)
@click.option("--threads", "num_threads", default=2, show_default=True, help="Torch threads of all workers together.")
@click.option(
    "--work", "folder", type=click.Path(path_type=Path, exists=True, file_okay=False), help="For checkpoints."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Also write a plot (.svg or .png).")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help=f"Exit 1 if 1 M users are below {TARGET} x the rate of the small model.")
def main(
    *,
    users: str,
    workers: str,
    optimizers: tuple[str, ...],
    num_threads: int,
    folder: Path | None,
    plot: Path | None,
    as_json: bool,
    check: bool,
) -> None:
    """Measures each number of users with each number of workers."""
    measurements = []
    for optimizer in optimizers:
        for num_users in (int(float(number)) for number in users.split(",")):
            for size in map(int, workers.split(",")):
                m = measure(Setting(num_users, size, optimizer, num_threads), folder)
                measurements.append(m)
                click.echo(
                    f"{m.optimizer:<12}{m.num_users:>10,} users {m.num_workers} workers {m.samples_per_s / 1e6:6.3f} M "
                    f"samples/s {m.ratio_to_small:5.2f} x small  peak {m.peak_bytes / 1e9:5.2f} GB  sent "
                    f"{m.sent_bytes / 1e6:6.2f} MB/step  checkpoint {m.checkpoint_s:5.1f} s",
                    err=as_json,
                )
    checked = [m for m in measurements if m.num_users == CHECKED_USERS and m.optimizer == "sparse_adam"]
    missed = [m for m in checked if m.ratio_to_small < TARGET]
    if as_json:
        click.echo(json.dumps({"measurements": [asdict(m) for m in measurements], "target": TARGET}))
    if plot is not None:
        write_plot(measurements, plot)
    if check and (missed or not checked):
        raise SystemExit(f"target missed: {[(m.num_workers, round(m.ratio_to_small, 2)) for m in missed]}")


if __name__ == "__main__":
    main()
