"""Commands on models: train, tune, evaluate."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, recipe_option, takes_invocation
from ray_recsys.commands.output import Table, facts
from ray_recsys.errors import InputError

if TYPE_CHECKING:
    from ray_recsys.core.workflows.evaluate import EvaluationResult, ModelMetrics


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="The run to write.")
@click.option("--resume", is_flag=True, help="Resumes an interrupted run.")
@click.option("--refit", "finished", type=INPUT, metavar="RUN", help="Trains this finished run again on everything.")
@takes_invocation
def train(invocation: Invocation, *, data: Path, output: Path, resume: bool, finished: Path | None) -> None:
    """Trains the recipe's model on a prepared set.

    Models with gradients are trained data-parallel by Ray Train, with checkpoints and curves; the others are fitted.
    `--set model.name=NAME` chooses the model. With `train.refit` the model is trained again on everything, held-out
    interactions included, for the number of epochs that validation chose.
    """
    from ray_recsys.distributed.training import refit
    from ray_recsys.distributed.training import train as run

    if resume and finished is not None:
        raise InputError("--resume and --refit exclude each other", remedy="resume the refit's own run with --resume")
    recipe, report = invocation.recipe, invocation.report
    with invocation.connect() as executor:
        if finished is None:
            result = run(data, output, recipe, executor, resume=resume, report=report)
        else:
            result = refit(finished, data, output, recipe.cluster, executor, report=report)
    invocation.answer(result, facts(**_scalars(result.model_dump(mode="json"))))


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="Where trials and the best recipe go.")
@click.option("--resume", is_flag=True, help="Resumes an interrupted search.")
@takes_invocation
def tune(invocation: Invocation, *, data: Path, output: Path, resume: bool) -> None:
    """Searches for a better recipe with Ray Tune.

    Tries values of the keys under [tune.space], by default embedding width and learning rate; stops poor trials early
    (ASHA) and writes the best recipe as TOML.
    """
    from ray_recsys.distributed.tuning import tune as run

    with invocation.connect():
        result = run(data, output, invocation.recipe, resume=resume, report=invocation.report)
    invocation.answer(
        result, facts(**_scalars(result.model_dump(mode="json")), **result.best.values, **result.best.metrics)
    )


@click.command()
@click.option(
    "--model", "models", type=INPUT, required=True, multiple=True, metavar="RUN|BUNDLE", help="May be repeated."
)
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--split", type=click.Choice(["test", "validation"]), default="test", help="Held-out items to rank.")
@recipe_option("--protocol", "evaluate.protocol", type=click.Choice(["full", "sampled"]), help="Candidates ranked.")
@click.option("--candidates", type=INPUT, metavar="FILE", help="Ranks these: user_id, item_id, label.")
@takes_invocation
def evaluate(
    invocation: Invocation,
    *,
    models: tuple[Path, ...],
    data: Path,
    split: Literal["test", "validation"],
    candidates: Path | None,
) -> None:
    """Ranks held-out items by one or more models, beside the baselines Popularity and Random.

    All see the same users and candidates: every item that the user has not seen, or a sample of them.
    """
    from ray_recsys.core.prepared import PreparedSet
    from ray_recsys.core.workflows.evaluate import evaluate as run

    with invocation.connect() as executor:
        result = run(
            models,
            PreparedSet.open(data),
            invocation.recipe.evaluate,
            executor,
            seed=invocation.recipe.seed,
            split=split,
            candidates=candidates,
            report=invocation.report,
        )
    invocation.answer(result, *evaluation_tables(result))


def evaluation_tables(result: "EvaluationResult") -> list[Table]:
    """Returns an evaluation for people: its facts, and a row per metric with a column per model."""
    models = result.models
    labels = list(dict.fromkeys(label for model in models.values() for label in model.metrics))
    rows = [(label, *(_cell(model, label) for model in models.values())) for label in labels]
    title = f"{result.protocol} ranking of {result.split}, ± standard error over users"
    unknown = [] if result.unknown is None else [facts("not in the model's data", **result.unknown.model_dump())]
    return [facts(**_scalars(result.model_dump(mode="json"))), *unknown, Table(("metric", *models), rows, title)]


def _cell(model: "ModelMetrics", label: str) -> str:
    if label not in model.metrics:
        return ""
    return f"{model.metrics[label]:.4f} ±{model.standard_errors[label]:.4f}"


def _scalars(values: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if not isinstance(value, dict | list)}
