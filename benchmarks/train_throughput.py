"""Whole epochs through Ray Data and Ray Train against a bare in-memory PyTorch loop of the textbook NeuMF.

Both: widths 64; 128-64-32, 4 negatives a positive, 4,096 positives a batch, Adam over all rows, MovieLens-1M's shape
(6,040 users, 3,706 items, 1,000,000 interactions, made here). They take turns in one run; rates are of steady epochs,
checkpoints and reports included, from the second epoch on; what start-up costs is beside them. A sample is one
(user, item) pair, scored and back-propagated.

    python -m benchmarks.train_throughput [--json] [--check] [--rounds 2] [--interactions 1000000]
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_recsys.config import Recipe
from ray_recsys.core.artifact import atomic_directory
from ray_recsys.core.histories import Histories, Interactions
from ray_recsys.core.prepared import ITEMS, PreparedManifest, PreparedSet, write_partition, write_prepared_manifest
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.training import train
from ray_recsys.recipe_files import parse_recipe

NUM_USERS, NUM_ITEMS, NUM_NEGATIVES, BATCH = 6_040, 3_706, 4, 4_096
WIDTH, LAYERS = 64, (128, 64, 32)
NUM_PARTITIONS = 8
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
        self._users, self._items = users, items
        self._model = Textbook()
        self._optimizer = torch.optim.Adam(self._model.parameters(), fused=True)

    def epoch(self) -> float:
        """Returns samples per second of one epoch."""
        start_s = time.perf_counter()
        order = torch.randperm(len(self._users))
        for places in torch.split(order, BATCH):
            negatives = torch.randint(NUM_ITEMS, (len(places), NUM_NEGATIVES))
            items = torch.cat([self._items[places].unsqueeze(1), negatives], dim=1)
            labels = torch.zeros(items.shape)
            labels[:, 0] = 1
            users = self._users[places].repeat_interleave(1 + NUM_NEGATIVES)
            loss = functional.binary_cross_entropy_with_logits(self._model(users, items.view(-1)), labels.view(-1))
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            self._optimizer.step()
        return len(self._users) * (1 + NUM_NEGATIVES) / (time.perf_counter() - start_s)


def write_data(path: Path, num_interactions: int) -> PreparedSet:
    """Writes a prepared set of distinct pairs; popular items are drawn more often. No split."""
    rng = np.random.default_rng(0)
    lengths = np.full(NUM_USERS, num_interactions // NUM_USERS)
    lengths[: num_interactions % NUM_USERS] += 1
    keys = rng.gumbel(size=(NUM_USERS, NUM_ITEMS)).astype(np.float32) - np.log1p(np.arange(NUM_ITEMS), dtype=np.float32)
    most = int(lengths.max())
    drawn = np.argpartition(-keys, most - 1, axis=1)[:, :most]
    counts = np.bincount(np.concatenate([row[:n] for row, n in zip(drawn, lengths, strict=True)]), minlength=NUM_ITEMS)
    order = np.argsort(-counts, kind="stable")
    rank_of = np.argsort(order)
    with atomic_directory(path) as staging:
        ids = [str(item) for item in order]
        columns = {"item_idx": pa.array(np.arange(NUM_ITEMS), pa.int32()), "item_id": ids, "count": counts[order]}
        pq.write_table(pa.table(columns), staging / ITEMS)
        partitions, digests = [], {}
        for place, users in enumerate(np.array_split(np.arange(NUM_USERS), NUM_PARTITIONS)):
            offsets = np.concatenate([[0], np.cumsum(lengths[users])]).astype(np.int64)
            items = np.concatenate([rank_of[drawn[user, : lengths[user]]] for user in users]).astype(np.int32)
            training = Interactions(offsets, items, np.arange(len(items), dtype=np.int64))
            nothing = Interactions(np.zeros_like(offsets), items[:0], np.zeros(0, np.int64))
            histories = Histories(int(users[0]), training, nothing, nothing)
            info, digest = write_partition(staging, place, histories, pa.array([str(user) for user in users]))
            partitions.append(info)
            digests[info.file] = digest
        manifest = PreparedManifest.model_validate(
            {
                "created_at": "2026-01-01T00:00:00+00:00",
                "rows_in": num_interactions,
                "rows_kept": num_interactions,
                "rows_dropped": {},
                "num_users": NUM_USERS,
                "num_items": NUM_ITEMS,
                "num_training": num_interactions,
                "num_validation": 0,
                "num_test": 0,
                "split": {"method": "leave_one_out"},
                "input_fingerprint": "benchmark",
                "recipe": Recipe(),
                "partitions": tuple(partitions),
            }
        )
        write_prepared_manifest(staging, manifest, digests)
    return PreparedSet.open(path)


def train_with_ray(prepared: PreparedSet, run: Path, num_workers: int, num_epochs: int) -> tuple[float, float]:
    """Returns (samples per second from the second epoch on, seconds of start-up, first epoch and end)."""
    recipe = parse_recipe(
        {
            "model": {"embedding_dim": WIDTH, "mlp_layers": list(LAYERS)},
            "feed": {"num_negatives": NUM_NEGATIVES},
            "train": {"epochs": num_epochs, "batch_size": BATCH, "num_workers": num_workers},
        },
        "train_throughput",
    )
    ends_s: list[float] = []
    start_s = time.perf_counter()
    train(
        prepared.path,
        run,
        recipe,
        report=lambda line: ends_s.append(time.perf_counter()) if line.startswith("epoch ") else None,
    )
    wall_s = time.perf_counter() - start_s
    steady_s = ends_s[-1] - ends_s[0]
    samples = prepared.manifest.num_training * (1 + NUM_NEGATIVES) * (len(ends_s) - 1)
    return samples / steady_s, wall_s - steady_s * num_epochs / (num_epochs - 1)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help=f"Exit 1 if 2 workers are below {TARGET} x the bare loop.")
@click.option("--rounds", default=2, show_default=True, help="Turns of each.")
@click.option("--epochs", default=3, show_default=True, help="Epochs of a turn of ours; the bare loop runs one less.")
@click.option("--interactions", default=1_000_000, show_default=True)
def main(*, as_json: bool, check: bool, rounds: int, epochs: int, interactions: int) -> None:
    """Measures samples per second of whole epochs."""
    rates: dict[str, list[float]] = {"bare, 2 threads": [], "ours, 1 worker": [], "ours, 2 workers": []}
    start_up_s: list[float] = []
    with tempfile.TemporaryDirectory() as directory, connect("local", num_cpus=4):
        prepared = write_data(Path(directory) / "data", interactions)
        parts = [prepared.read_partition(place) for place in range(NUM_PARTITIONS)]
        users = np.concatenate([part.training.rows() + part.first_user_idx for part in parts])
        items = np.concatenate([part.training.item_idx for part in parts]).astype(np.int64)
        bare = BareLoop(torch.from_numpy(users), torch.from_numpy(items), num_threads=2)
        for turn in range(rounds):
            for num_workers, name in ((2, "ours, 2 workers"), (1, "ours, 1 worker")):
                rates["bare, 2 threads"] += [bare.epoch() for _ in range(max(1, epochs - 1))]
                rate, seconds = train_with_ray(prepared, Path(directory) / f"{turn}-{num_workers}", num_workers, epochs)
                rates[name].append(rate)
                start_up_s.append(seconds)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["ours, 2 workers"] / medians["bare, 2 threads"]
    answer = {
        "samples_per_s": {name: round(value) for name, value in medians.items()},
        "ratio_2_workers_to_bare": round(ratio, 3),
        "target": TARGET,
        "start_up_s": round(statistics.median(start_up_s), 1),
        "all": {name: [round(value) for value in values] for name, values in rates.items()},
    }
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        for name, value in medians.items():
            print(f"{name:<18}{value / 1e6:8.3f} M samples/s{value / medians['bare, 2 threads']:8.2f} x bare")
        print(f"start-up of a Ray Train run, beside its epochs: {answer['start_up_s']} s")
    if check and ratio < TARGET:
        sys.exit(1)


if __name__ == "__main__":
    main()
