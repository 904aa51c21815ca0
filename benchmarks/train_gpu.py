"""Training rate on one GPU at the setting of NVIDIA's NCF: `python -m benchmarks.train_gpu [--json] [--check]`.

MovieLens-20M's shape (138,493 users, 26,744 items, 20 M interactions, made here), NeuMF 64; 256-256-128-64, 4 negatives
a positive, 1,048,576 pairs a step, bf16. Two feeds take turns in one process, without Ray: `device` draws on the GPU
(`cluster.placement = "device"`), `worker` draws on the host and copies ahead. Rates are of steady epochs, the first one
left out; a sample is one (user, item) pair, scored and back-propagated.

It was never run on a GPU. On a CPU it runs at a smaller size: `--device cpu --interactions 200000 --batch 16384`.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.prepared_sets import histories_of, write_set
from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.histories import Histories
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.device_stream import DeviceStream
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.validation import Validation

NUM_NEGATIVES = 4
NUM_PARTITIONS = 16
TARGETS = {"device": 34e6, "worker": 17e6}  # samples per second on one H100
_STRIDE = 7_919  # a prime: a user's items, this far apart modulo the catalogue, are distinct


def write_data(path: Path, num_users: int, num_items: int, num_interactions: int) -> PreparedSet:
    """Writes a prepared set of distinct pairs, equally many for each user."""
    if num_items % _STRIDE == 0:
        raise click.BadParameter(f"--items must not be a multiple of {_STRIDE}")
    firsts = np.random.default_rng(0).integers(num_items, size=num_users)
    offsets = np.arange(num_users + 1) * num_interactions // num_users

    def partitions() -> Iterator[Histories]:
        for users in np.array_split(np.arange(num_users), NUM_PARTITIONS):
            lengths = np.diff(offsets[users[0] : users[-1] + 2])
            ends = np.concatenate([[0], np.cumsum(lengths)])
            ages = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
            items = (np.repeat(firsts[users], lengths) + ages * _STRIDE) % num_items
            yield histories_of(int(users[0]), ends, items.astype(np.int32))

    return write_set(path, partitions(), num_items)


def recipe_of(*, batch: int, precision: str, epochs: int) -> Recipe:
    """Returns the recipe of a run; `batch` counts pairs."""
    return parse_recipe(
        {
            "model": {"embedding_dim": 64, "mlp_layers": [256, 256, 128, 64]},
            "feed": {"num_negatives": NUM_NEGATIVES},
            "train": {"epochs": epochs, "batch_size": max(1, batch // (1 + NUM_NEGATIVES)), "precision": precision},
        },
        "train_gpu",
    )


def train(prepared: PreparedSet, recipe: Recipe, placement: str, device: torch.device) -> list[EpochRecord]:
    """Trains with one feed; returns the epochs after the first."""
    build = MODELS[recipe.model.name].build
    assert build is not None
    feed = DeviceStream(prepared, recipe, device) if placement == "device" else local_feed(prepared, recipe)
    trainer = Trainer(build(prepared, recipe), recipe.train, steps_per_epoch=feed.plan.num_steps, device=device)
    nothing = Validation([], recipe.evaluate.users_per_batch, recipe.seed, has_ratings=False)
    try:
        train_epochs(trainer, feed, nothing, recipe.seed, lambda *_: None)
    finally:
        feed.close()
    return trainer.progress.records[1:]


@click.command()
@click.option("--device", "device_name", default="cuda", show_default=True)
@click.option("--users", default=138_493, show_default=True)
@click.option("--items", default=26_744, show_default=True)
@click.option("--interactions", default=20_000_000, show_default=True)
@click.option("--batch", default=1_048_576, show_default=True, help="Pairs of a step.")
@click.option("--precision", default="bf16", show_default=True, type=click.Choice(["float32", "tf32", "bf16"]))
@click.option("--epochs", default=3, show_default=True, help="Epochs of a turn; the first is not counted.")
@click.option("--rounds", default=2, show_default=True, help="Turns of each feed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help="Exit 1 if a target is missed.")
def main(
    *,
    device_name: str,
    users: int,
    items: int,
    interactions: int,
    batch: int,
    precision: str,
    epochs: int,
    rounds: int,
    as_json: bool,
    check: bool,
) -> None:
    """Measures samples per second."""
    device = torch.device(device_name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("no CUDA device here: choose --device cpu and a smaller size")
    recipe = recipe_of(batch=batch, precision=precision, epochs=max(2, epochs))
    rates: dict[str, list[float]] = {placement: [] for placement in TARGETS}
    with tempfile.TemporaryDirectory() as directory:
        prepared = write_data(Path(directory) / "data", users, items, interactions)
        for _ in range(rounds):
            for placement, found in rates.items():
                found.extend(record.samples_per_s for record in train(prepared, recipe, placement, device))
    medians = {placement: statistics.median(found) for placement, found in rates.items()}
    if as_json:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        click.echo(json.dumps({"device": name, "samples_per_s": rates, "medians": medians, "targets": TARGETS}))
    else:
        for placement, rate in medians.items():
            click.echo(f"{placement:<8}{rate / 1e6:8.2f} M samples/s")
    if check and (missed := [name for name, target in TARGETS.items() if medians[name] < target]):
        raise SystemExit(f"target missed by: {', '.join(missed)}")


if __name__ == "__main__":
    main()
