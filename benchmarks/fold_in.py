"""Fold-in against training: recommendations for users whom training did not see, from the history in the request.

    python -m benchmarks.fold_in --data prepared --recipes A.toml B.toml --work DIR [--share 0.1] [--json] [--check]

A share of the users, chosen by a hash, is left out of a copy of the prepared set. Each recipe is trained on both sets,
without a refit, through the driver of `train`. Both models rank these users' test items under both protocols: the one
from the users' trained factors, the other from their training histories, given as a request gives them. So both
have the same information about a user. Runs are kept in DIR and not trained again.
"""

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.prepared_sets import write_set
from ray_recsys.config import EvaluateRecipe, Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.arrays import Float64s, Int64s, positions_of_rows
from ray_recsys.core.evaluation.candidates import choose_users
from ray_recsys.core.evaluation.fold_in import FoldedIn
from ray_recsys.core.evaluation.metrics import values_by_user
from ray_recsys.core.evaluation.protocols import protocol_label, rank_users
from ray_recsys.core.executor import Executor
from ray_recsys.core.histories import COLUMNS, Histories, Interactions
from ray_recsys.core.models.contract import Model, Scorer
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.run import Run
from ray_recsys.distributed.cluster import connect
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.training import train

SHARE_TO_KEEP = 0.9  # of the trained users' metrics
PROTOCOLS, METRICS = ("full", "sampled"), ("Hit@10", "NDCG@10")
SEED = 1
_NUM_TIMED = 100


def write_without(prepared: PreparedSet, path: Path, share: float) -> PreparedSet:
    """Writes a copy of a prepared set without a share of its users; items keep their indices."""

    def partitions() -> Iterator[Histories]:
        first = 0
        for number in range(len(prepared.manifest.partitions)):
            histories = prepared.read_partition(number)
            rows = np.flatnonzero(~choose_users(histories.user_idx, share, SEED))
            yield _of_rows(histories, rows, first)
            first += len(rows)

    return write_set(
        path,
        partitions(),
        prepared.manifest.num_items,
        split=prepared.manifest.split,
        recipe=prepared.manifest.recipe,
    )


def _of_rows(histories: Histories, rows: Int64s, first_user_idx: int) -> Histories:
    def select(part: Interactions) -> Interactions:
        positions = positions_of_rows(part.offsets, rows)
        columns = {name: getattr(part, name) for name in COLUMNS}
        return Interactions(
            np.concatenate([[0], np.cumsum(part.lengths[rows])]),
            **{name: values[positions] for name, values in columns.items() if values is not None},
        )

    return Histories(first_user_idx, *map(select, (histories.training, histories.validation, histories.test)))


def trained_model(data: PreparedSet, run: Path, recipe: Recipe, executor: Executor) -> Model:
    """Returns the model of a recipe without a refit, trained unless the run is there."""
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"refit": False})})
    train(data.path, run, recipe, executor, resume=run.exists(), report=lambda event: click.echo(str(event), err=True))
    return Run.open(run).load_model()


def values_of(
    scorer: Scorer, histories: Histories, evaluate: EvaluateRecipe, share: float, num_items: int
) -> dict[str, Float64s]:
    """Returns the metrics of each chosen user of some histories, by `<metric> <protocol>`."""
    found: dict[str, Float64s] = {}
    for protocol in PROTOCOLS:
        recipe = evaluate.model_copy(update={"protocol": protocol})
        ranked = rank_users(scorer, histories, num_items=num_items, recipe=recipe, split="test", seed=SEED, share=share)
        parts = [values_by_user(part.lists, (10,)) for part in ranked]
        for name in METRICS:
            label = f"{name} {protocol_label(recipe)}"
            found[label] = np.concatenate([np.zeros(0), *(part[name] for part in parts)])
    return found


def measure(prepared: PreparedSet, trained: Model, unseen: Model, recipe: Recipe, share: float) -> dict[str, Any]:
    """Returns the metrics of trained and of folded-in users, and the milliseconds of a fold-in."""
    own: list[dict[str, Float64s]] = []
    folded: list[dict[str, Float64s]] = []
    times_ms = []
    for number in range(len(prepared.manifest.partitions)):
        histories = prepared.read_partition(number)
        scorer = FoldedIn(unseen, histories)
        own.append(values_of(trained, histories, recipe.evaluate, share, unseen.num_items))
        folded.append(values_of(scorer, histories, recipe.evaluate, share, unseen.num_items))
        chosen = histories.user_idx[choose_users(histories.user_idx, share, SEED)]
        for user in chosen[: _NUM_TIMED // len(prepared.manifest.partitions) + 1].tolist():
            start_s = time.perf_counter()
            scorer.users(np.array([user]))
            times_ms.append((time.perf_counter() - start_s) * 1000)
    metrics = {}
    for label in own[0]:
        before, after = (np.concatenate([part[label] for part in parts]) for parts in (own, folded))
        metrics[label] = {
            "trained": float(before.mean()),
            "folded_in": float(after.mean()),
            "share_kept": float(after.mean() / before.mean()),
            "standard_error": float((after - before).std() / np.sqrt(len(before))),
        }
    return {"num_users": len(before), "metrics": metrics, "fold_in_ms": statistics.median(times_ms)}


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="The prepared set.")
@click.option("--recipes", type=click.Path(path_type=Path), multiple=True, required=True, metavar="FILE...")
@click.argument("more_recipes", type=click.Path(path_type=Path), nargs=-1, metavar="")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Directory for the copy and the runs.")
@click.option("--share", default=0.1, show_default=True, help="Fraction of users to leave out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option("--check", is_flag=True, help=f"Exit 1 if a recipe keeps less than {SHARE_TO_KEEP:.0%}.")
def main(
    *,
    data: Path,
    recipes: tuple[Path, ...],
    more_recipes: tuple[Path, ...],
    work: Path,
    share: float,
    as_json: bool,
    check: bool,
) -> None:
    """Measures what folding in keeps of the trained users' metrics."""
    prepared, work = PreparedSet.open(data), work.absolute()
    copy = work / f"without-{share:g}"
    reduced = PreparedSet.open(copy) if copy.exists() else write_without(prepared, copy, share)
    found: dict[str, dict[str, Any]] = {}
    with connect("local"):
        for file in (*recipes, *more_recipes):
            recipe = load_recipe(file)
            executor = RayExecutor("train", recipe.cluster)
            trained = trained_model(prepared, work / "all" / file.stem, recipe, executor)
            unseen = trained_model(reduced, work / f"runs-{share:g}" / file.stem, recipe, executor)
            torch.set_num_threads(1)
            found[file.stem] = measure(prepared, trained, unseen, recipe, share)
    if as_json:
        click.echo(json.dumps(found))
    else:
        for name, one in found.items():
            click.echo(f"{name}: {one['num_users']:,} users, {one['fold_in_ms']:.2f} ms per fold-in")
            for label, values in one["metrics"].items():
                click.echo(
                    f"    {label:<20}trained {values['trained']:.4f}, folded in {values['folded_in']:.4f} "
                    f"({values['share_kept']:.1%}), ±{values['standard_error']:.4f} of the difference"
                )
    missed = [
        f"{name}, {label}"
        for name, one in found.items()
        for label, values in one["metrics"].items()
        if values["share_kept"] < SHARE_TO_KEEP
    ]
    if check and missed:
        raise SystemExit(f"target missed: {'; '.join(missed)}: less than {SHARE_TO_KEEP:.0%}")


if __name__ == "__main__":
    main()
