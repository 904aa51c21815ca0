"""Commands on models: train, tune, evaluate."""

from pathlib import Path
from typing import Any, Literal

import click

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, recipe_option, takes_invocation
from ray_recsys.commands.output import Table, facts


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="The run to write.")
@click.option("--resume", is_flag=True, help="Goes on with a run that was cut off.")
@takes_invocation
def train(invocation: Invocation, *, data: Path, output: Path, resume: bool) -> None:
    """Trains NeuMF on a prepared set with Ray Train.

    Writes checkpoints, metrics and curves; best and last checkpoint are kept.
    """
    from ray_recsys.distributed.training import train as run

    with invocation.connect():
        result = run(data, output, invocation.recipe, resume=resume, report=invocation.report)
    invocation.answer(result, facts(**_scalars(result.model_dump(mode="json"))))


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="Where trials and the best recipe go.")
@takes_invocation
def tune(invocation: Invocation, *, data: Path, output: Path) -> None:
    """Searches a better recipe with Ray Tune.

    Tries embedding widths and learning rates, ends poor trials early (ASHA), writes the best recipe as TOML.
    """
    from ray_recsys.distributed.tuning import tune as run

    with invocation.connect():
        result = run(data, output, invocation.recipe, report=invocation.report)
    invocation.answer(result, facts(**_scalars(result.model_dump(mode="json"))))


@click.command()
@click.option("--model", type=INPUT, required=True, metavar="RUN|BUNDLE", help="A run or a bundle.")
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", help="Held-out items to rank.")
@recipe_option("--protocol", "evaluate.protocol", type=click.Choice(["full", "sampled"]), help="Candidates ranked.")
@click.option("--candidates", type=INPUT, metavar="FILE", help="Ranks these: user_id, item_id, label.")
@takes_invocation
def evaluate(
    invocation: Invocation, *, model: Path, data: Path, split: Literal["test", "validation"], candidates: Path | None
) -> None:
    """Ranks held-out items, beside Popularity and Random.

    All three see the same users and candidates: every item that the user has not seen, or a sample of them.
    """
    from ray_recsys.distributed.evaluation import evaluate as run

    with invocation.connect():
        result = run(model, data, invocation.recipe, split=split, candidates=candidates, report=invocation.report)
    invocation.answer(result, *evaluation_tables(result.model_dump(mode="json")))


def evaluation_tables(result: dict[str, Any]) -> list[Table]:
    """Returns what is said of an evaluation: its facts, and a metric per row with a column per model."""
    models = result["models"]
    labels = next(iter(models.values()))["metrics"]
    rows = [
        (label, *(f"{m['metrics'][label]:.4f} ±{m['standard_errors'][label]:.4f}" for m in models.values()))
        for label in labels
    ]
    title = f"{result['protocol']} ranking of {result['split']}, ± standard error over users"
    unknown = [facts("not in the model's data", **result["unknown"])] if result["unknown"] else []
    return [facts(**_scalars(result)), *unknown, Table(("metric", *models), rows, title)]


def _scalars(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if not isinstance(value, dict | list)}
