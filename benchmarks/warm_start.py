"""Epochs that a warm start saves when a log has grown by a tenth.

The first 90 % of a log by time are prepared, trained and published; then all of it is trained cold, and warm from that
bundle for a third of the epochs, with the same recipe otherwise: its learning rate falls linearly to 0 in both. The
target is the cold run's best validation NDCG@10. Needs a log with times, e.g. MovieLens-1M's ratings as Parquet.
"""

import json
import tempfile
from pathlib import Path

import click
import pyarrow.parquet as pq
from pydantic import BaseModel

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe, parse_recipe, with_values
from ray_recsys.core.executor import Executor
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.core.training.checkpoint import read_progress
from ray_recsys.core.training.run import LAST
from ray_recsys.core.workflows.publish import publish
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.training import train
from ray_recsys.progress import silent
from ray_recsys.storage.location import LocationLike

FIRST_SHARE, TARGET, METRIC = 0.9, 1 / 3, "NDCG@10"
RECIPE = parse_recipe(
    {
        "model": {"init_std": 0.1},
        "train": {
            "epochs": 9,
            "learning_rate": 0.002,
            "learning_rate_schedule": "linear",
            "early_stopping_epochs": "none",
        },
    },
    "warm_start",
)


class Saving(BaseModel):
    """Validation NDCG@10 after each epoch of both runs."""

    cold: list[float]
    warm: list[float]

    @property
    def warm_epochs(self) -> int | None:
        """Epochs until the warm run is as good as the cold one at its best; None: it never is."""
        return next((epoch for epoch, value in enumerate(self.warm, start=1) if value >= max(self.cold)), None)

    @property
    def ratio(self) -> float | None:
        """Epochs of the warm run for each epoch of the cold one."""
        return None if self.warm_epochs is None else self.warm_epochs / len(self.cold)


def measure(log: Path, directory: Path, recipe: Recipe, executor: Executor) -> Saving:
    """Trains three times: on the first part of the log, then on all of it, cold and warm."""
    table = pq.read_table(log)
    table = table.sort_by([(str(recipe.input.timestamp_column), "ascending")])
    first = table.slice(0, int(len(table) * FIRST_SHARE))
    for name, part in (("first", first), ("all", table)):
        pq.write_table(part, directory / f"{name}.parquet")
        prepare([str(directory / f"{name}.parquet")], directory / name, recipe, executor)

    def curve(data: str, run: str, chosen: Recipe, warm_start: LocationLike | None = None) -> list[float]:
        train(directory / data, directory / run, chosen, executor, warm_start=warm_start, report=silent)
        return [record.metrics[METRIC] for record in read_progress(directory / run / LAST).records]

    curve("first", "run-first", recipe)
    published = publish(directory / "run-first", directory / "first", directory / "registry", recipe.bundle, executor)
    cold = curve("all", "run-cold", recipe)
    short = with_values(recipe, {"train.epochs": int(recipe.train.epochs * TARGET)})
    return Saving(cold=cold, warm=curve("all", "run-warm", short, published.path))


@click.command()
@click.option(
    "--input", "log", type=click.Path(path_type=Path, exists=True), required=True, help="Parquet, with times."
)
@click.option("--recipe", "recipe_file", type=click.Path(path_type=Path, exists=True), help="Default: NeuMF.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Recipe value, with --recipe.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help="Exit 1 if the warm run misses it.")
def main(*, log: Path, recipe_file: Path | None, overrides: tuple[str, ...], as_json: bool, check: bool) -> None:
    """Measures the epochs that a warm start saves."""
    recipe = RECIPE if recipe_file is None else load_recipe(recipe_file, overrides)
    with tempfile.TemporaryDirectory() as directory, connect("local"):
        saving = measure(log, Path(directory), recipe, RayExecutor("train", recipe.cluster))
    answer = saving.model_dump() | {"warm_epochs": saving.warm_epochs, "ratio": saving.ratio, "target": TARGET}
    if as_json:
        click.echo(json.dumps(answer))
    else:
        for name, values in (("cold", saving.cold), ("warm", saving.warm)):
            click.echo(f"{name}  {METRIC} by epoch: {' '.join(f'{value:.4f}' for value in values)}")
    if check and (saving.ratio is None or saving.ratio > TARGET):
        raise SystemExit(f"target missed: {max(saving.warm):.4f}, not the cold run's {max(saving.cold):.4f}")


if __name__ == "__main__":
    main()
