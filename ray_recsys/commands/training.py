"""Commands that train models: train, tune."""

import click

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, live_bundle, takes_invocation
from ray_recsys.commands.output import facts, scalars
from ray_recsys.errors import InputError
from ray_recsys.storage.location import Location


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="The run to write.")
@click.option("--resume", is_flag=True, help="Resumes an interrupted run.")
@click.option("--refit", "finished", type=INPUT, metavar="RUN", help="Trains this finished run again on everything.")
@click.option("--warm-start", type=INPUT, metavar="BUNDLE", help="Starts from this bundle's (or registry's) weights.")
@takes_invocation
def train(
    invocation: Invocation,
    *,
    data: Location,
    output: Location,
    resume: bool,
    finished: Location | None,
    warm_start: Location | None,
) -> None:
    """Trains the recipe's model on a prepared set.

    Models with gradients are trained data-parallel by Ray Train, with checkpoints and curves; the others are fitted.
    `--set model.name=NAME` chooses the model. With `train.refit` the model is trained again on everything, held-out
    interactions included, for the number of epochs that validation chose.
    """
    from ray_recsys.distributed.training import refit
    from ray_recsys.distributed.training import train as run

    if resume and finished is not None:
        raise InputError("--resume and --refit exclude each other", remedy="resume the refit's own run with --resume")
    if warm_start is not None and finished is not None:
        raise InputError("--warm-start and --refit exclude each other", remedy="a refit starts as its run started")
    recipe, report = invocation.recipe, invocation.report
    with invocation.connect() as executor:
        if finished is None:
            bundle = None if warm_start is None else live_bundle(warm_start)
            result = run(data, output, recipe, executor, resume=resume, warm_start=bundle, report=report)
        else:
            result = refit(finished, data, output, recipe.cluster, executor, report=report)
    invocation.answer(result, facts(**scalars(result.model_dump(mode="json"))))


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set.")
@click.option("--output", type=OUTPUT, required=True, metavar="RUN", help="Directory of trials and the best recipe.")
@click.option("--resume", is_flag=True, help="Resumes an interrupted search.")
@takes_invocation
def tune(invocation: Invocation, *, data: Location, output: Location, resume: bool) -> None:
    """Searches for a better recipe with Ray Tune.

    Tries values of the keys under [tune.space], by default embedding width and learning rate; stops poor trials early
    (ASHA) and writes the best recipe as TOML.
    """
    from ray_recsys.distributed.tuning import tune as run

    with invocation.connect():
        result = run(data, output, invocation.recipe, resume=resume, report=invocation.report)
    invocation.answer(
        result, facts(**scalars(result.model_dump(mode="json")), **result.best.values, **result.best.metrics)
    )
