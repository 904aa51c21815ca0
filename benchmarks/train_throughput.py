"""Whole epochs through Ray Data and Ray Train against a bare in-memory PyTorch loop of the textbook NeuMF.

Both: widths 64; 128-64-32, 4 negatives a positive, 4,096 positives a batch, Adam over all rows, MovieLens-1M's shape
(6,040 users, 3,706 items, 1,000,000 interactions, made here). They alternate in one run; rates are of steady epochs,
checkpoints and reports included, from the second epoch on; start-up cost is reported separately. A sample is one
(user, item) pair, scored and back-propagated.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.histories import Histories
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.training import train
from ray_recsys.progress import EpochFinished

NUM_USERS, NUM_ITEMS, NUM_NEGATIVES, BATCH = 6_040, 3_706, 4, 4_096
WIDTH, LAYERS = 64, (128, 64, 32)
NUM_PARTITIONS = 8
BARE, OURS_1, OURS_2 = "bare, 2 threads", "ours, 1 worker", "ours, 2 workers"
TARGET = 1.0  # ours with 2 workers, over the bare loop with 2 threads


class Textbook(nn.Module):
    """NeuMF as the paper draws it: concatenate, full layers, one output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.user_gmf, self.user_mlp = nn.Embedding(NUM_USERS, WIDTH), nn.Embedding(NUM_USERS, WIDTH)
        self.item_gmf, self.item_mlp = nn.Embedding(NUM_ITEMS, WIDTH), nn.Embedding(NUM_ITEMS, WIDTH)
        widths = (2 * WIDTH, *LAYERS)
        layers = [layer for a, b in zip(widths, LAYERS, strict=False) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.mlp = nn.Sequential(*layers)
        self.output = nn.Linear(WIDTH + LAYERS[-1], 1)

    def forward(self, user_idx: Tensor, item_idx: Tensor) -> Tensor:
        """Returns the logits of pairs, [B]."""
        gmf = self.user_gmf(user_idx) * self.item_gmf(item_idx)
        mlp = self.mlp(torch.cat([self.user_mlp(user_idx), self.item_mlp(item_idx)], dim=1))
        logits: Tensor = self.output(torch.cat([gmf, mlp], dim=1)).squeeze(1)
        return logits


class BareLoop:
    """Epochs over arrays in memory; negatives are uniform and not rejected, which is less work than ours."""

    def __init__(self, users: Tensor, items: Tensor, num_threads: int) -> None:
        torch.set_num_threads(num_threads)
        torch.set_flush_denormal(True)  # as ours: Adam's averages are slow otherwise
        self._users, self._items = users, items
        self._model = Textbook()
        self._optimizer = torch.optim.Adam(self._model.parameters(), fused=True)

    def epoch(self) -> float:
        """Returns samples per second of one epoch."""
        start_s = time.perf_counter()
        order = torch.randperm(len(self._users))
        for positions in torch.split(order, BATCH):
            negatives = torch.randint(NUM_ITEMS, (len(positions), NUM_NEGATIVES))
            items = torch.cat([self._items[positions].unsqueeze(1), negatives], dim=1)
            labels = torch.zeros(items.shape)
            labels[:, 0] = 1
            users = self._users[positions].repeat_interleave(1 + NUM_NEGATIVES)
            loss = functional.binary_cross_entropy_with_logits(self._model(users, items.view(-1)), labels.view(-1))
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        return len(self._users) * (1 + NUM_NEGATIVES) / (time.perf_counter() - start_s)


def write_data(path: Path, num_interactions: int) -> PreparedSet:
    """Writes a prepared set of distinct pairs; popular items are drawn more often. No split."""
    rng = np.random.default_rng(0)
    lengths = np.diff(np.arange(NUM_USERS + 1) * num_interactions // NUM_USERS)
    keys = rng.gumbel(size=(NUM_USERS, NUM_ITEMS)).astype(np.float32) - np.log1p(np.arange(NUM_ITEMS), dtype=np.float32)
    most = int(lengths.max())
    drawn = np.argpartition(-keys, most - 1, axis=1)[:, :most]

    def make(users: Int64s) -> Histories:
        items = np.concatenate([drawn[user, : lengths[user]] for user in users])
        return histories_of(int(users[0]), np.cumsum([0, *lengths[users]]), items.astype(np.int32))

    parts = np.array_split(np.arange(NUM_USERS), NUM_PARTITIONS)
    return write_set(path, (make(users) for users in parts), NUM_ITEMS)


def train_with_ray(prepared: PreparedSet, run: Path, num_workers: int, num_epochs: int) -> tuple[float, float]:
    """Returns (samples per second from the second epoch on, seconds of start-up, first epoch and end)."""
    recipe = parse_recipe(
        {
            "model": {"embedding_dim": WIDTH, "mlp_layers": list(LAYERS)},
            "feed": {"num_negatives": NUM_NEGATIVES},
            "train": {"epochs": num_epochs, "batch_size": BATCH},
            "cluster": {"num_workers": num_workers},
        },
        "train_throughput",
    )
    ends_s: list[float] = []
    start_s = time.perf_counter()
    train(
        prepared.path,
        run,
        recipe,
        RayExecutor("train", recipe.cluster),
        report=lambda event: ends_s.append(time.perf_counter()) if isinstance(event, EpochFinished) else None,
    )
    wall_s = time.perf_counter() - start_s
    steady_s = ends_s[-1] - ends_s[0]
    samples = prepared.manifest.num_training * (1 + NUM_NEGATIVES) * (len(ends_s) - 1)
    return samples / steady_s, wall_s - steady_s * num_epochs / (num_epochs - 1)


def measure(directory: Path, rounds: int, epochs: int, num_interactions: int) -> tuple[dict[str, list[float]], float]:
    """Returns samples per second by name, and the median seconds of one of our runs outside its epochs."""
    rates: dict[str, list[float]] = {BARE: [], OURS_1: [], OURS_2: []}
    start_up_s: list[float] = []
    prepared = write_data(directory / "data", num_interactions)
    parts = [prepared.read_partition(partition) for partition in range(NUM_PARTITIONS)]
    users = np.concatenate([part.training.rows() + part.first_user_idx for part in parts])
    items = np.concatenate([part.training.item_idx for part in parts]).astype(np.int64)
    bare = BareLoop(torch.from_numpy(users), torch.from_numpy(items), num_threads=2)
    for turn in range(rounds):
        for num_workers, name in ((2, OURS_2), (1, OURS_1)):
            rates[BARE].append(bare.epoch())
            rate, seconds = train_with_ray(prepared, directory / f"{turn}-{num_workers}", num_workers, epochs)
            rates[name].append(rate)
            start_up_s.append(seconds)
    return rates, statistics.median(start_up_s)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help=f"Exit 1 if 2 workers are below {TARGET} x the bare loop.")
@click.option(
    "--rounds", default=2, show_default=True, help="Rounds of each of ours; the bare loop runs once before each."
)
@click.option("--epochs", default=3, show_default=True, help="Epochs per round of ours; the bare loop has one.")
@click.option("--interactions", default=1_000_000, show_default=True)
def main(*, as_json: bool, check: bool, rounds: int, epochs: int, interactions: int) -> None:
    """Measures samples per second of whole epochs."""
    with tempfile.TemporaryDirectory() as directory, connect("local", num_cpus=4):
        rates, start_up_s = measure(Path(directory), rounds, epochs, interactions)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {name: value / medians[BARE] for name, value in medians.items()}
    if as_json:
        answer = {"samples_per_s": rates, "ratio_to_bare": ratios, "target": TARGET, "start_up_s": start_up_s}
        click.echo(json.dumps(answer))
    else:
        for name, value in medians.items():
            click.echo(f"{name:<18}{value / 1e6:8.3f} M samples/s{ratios[name]:8.2f} x bare")
        click.echo(f"start-up of a Ray Train run, excluding its epochs: {start_up_s:.1f} s")
    if check and ratios[OURS_2] < TARGET:
        raise SystemExit(f"target missed: {OURS_2}: {ratios[OURS_2]:.2f} x the bare loop, not {TARGET}")


if __name__ == "__main__":
    main()
