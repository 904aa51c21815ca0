"""Commands on bundles: publish, serve, recommend, score."""

import signal
import threading

import click
from pydantic import BaseModel

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, live_bundle, recipe_option, takes_invocation
from ray_recsys.commands.output import facts
from ray_recsys.storage.location import Location


class Serving(BaseModel):
    """Address of the service."""

    address: str
    docs: str
    registry: Location


@click.command()
@click.option("--run", "run_path", type=INPUT, required=True, metavar="RUN", help="The run whose model is published.")
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="The prepared set that it was trained on.")
@click.option("--registry", type=OUTPUT, required=True, metavar="DIR", help="Registry of bundles.")
@click.option("--recall-run", type=INPUT, metavar="RUN", help="Another run whose model recalls; --run then reranks.")
@recipe_option(
    "--min-ratio", "bundle.min_ratio", type=float, help="Required part of the live NDCG@10.  [default: 0.98]"
)
@click.option("--force", is_flag=True, help="Publish even a model that is worse than the live one.")
@click.option("--arm", metavar="NAME", help="Publish as an arm of this name; the live version stays.")
@click.option(
    "--percent", type=click.FloatRange(0, 100, min_open=True), default=10.0, help="Percentage of users; with --arm."
)
@click.option("--shadow", is_flag=True, help="Users see the live version's answers; the arm's are only counted.")
@takes_invocation
def publish(
    invocation: Invocation,
    *,
    run_path: Location,
    data: Location,
    registry: Location,
    recall_run: Location | None,
    force: bool,
    arm: str | None,
    percent: float,
    shadow: bool,
) -> None:
    """Makes a run's model the live bundle, unless it is worse than the live one (exit status 3).

    With --arm the live bundle stays, and the new one serves a share of the users.
    """
    from ray_recsys.core.workflows.publish import ArmSpec
    from ray_recsys.core.workflows.publish import publish as run
    from ray_recsys.trackers.tracker import tag_published

    with invocation.connect() as executor:
        result = run(
            run_path,
            data,
            registry,
            invocation.recipe.bundle,
            executor,
            recall_run=recall_run,
            force=force,
            arm=None if arm is None else ArmSpec(arm, percent, shadow),
            report=invocation.report,
        )
    tag_published(run_path, result.version, invocation.report)
    values = result.model_dump(mode="json")
    metrics, _ = values.pop("metrics", None) or {}, values.pop("gate")
    invocation.answer(result, facts(**values), *([facts("metrics", **metrics)] if metrics else []))


@click.command()
@click.option("--registry", type=INPUT, required=True, metavar="DIR", help="Directory of bundles.")
@recipe_option("--port", "serve.port", type=click.IntRange(0, 65535), help="0: any free port.  [default: 8000]")
@recipe_option("--host", "serve.host", metavar="ADDRESS", help="0.0.0.0: all interfaces.  [default: 127.0.0.1]")
@takes_invocation
def serve(invocation: Invocation, *, registry: Location) -> None:
    """Serves the live bundle over HTTP until Ctrl-C.

    The page is at /, the API's description at /docs. Newly published bundles go live automatically.
    """
    from ray_recsys.distributed.serve.local import serve as run

    with invocation.connect(), run(registry, invocation.recipe.serve, report=invocation.report) as address:
        result = Serving(address=address, docs=f"{address}/docs", registry=registry)
        invocation.answer(result, facts(page=address, api_docs=result.docs, stop="Ctrl-C"))
        wait_for_interrupt()
        invocation.report("stopping")


@click.command()
@click.option("--bundle", type=INPUT, required=True, metavar="DIR", help="A bundle, or a registry: its live one.")
@click.option("--output", type=OUTPUT, required=True, metavar="DIR", help="Folder of Parquet files; _SUCCESS is last.")
@click.option("--users", type=INPUT, metavar="FILE", help="Only these users: a user_id column, or one id a line.")
@click.option("--k", type=click.IntRange(min=1), default=10, help="Items per user.")
@takes_invocation
def recommend(invocation: Invocation, *, bundle: Location, output: Location, users: Location | None, k: int) -> None:
    """Recommends to all users of a bundle.

    Runs on the cluster and returns the same lists as the HTTP API. The same command resumes an interrupted run.
    """
    from ray_recsys.core.workflows.recommend import recommend as run

    with invocation.connect() as executor:
        result = run(
            live_bundle(bundle),
            output,
            executor,
            num_candidates=invocation.recipe.serve.num_candidates,
            users=users,
            k=k,
            report=invocation.report,
        )
    invocation.answer(result, facts(**result.model_dump(mode="json")))


@click.command()
@click.option("--bundle", type=INPUT, required=True, metavar="DIR", help="A bundle, or a registry: its live one.")
@click.option("--input", "input_path", type=INPUT, required=True, metavar="FILE", help="Pairs: user_id, item_id.")
@click.option("--output", type=OUTPUT, required=True, metavar="FILE", help="The same rows with a score.")
@takes_invocation
def score(invocation: Invocation, *, bundle: Location, input_path: Location, output: Location) -> None:
    """Scores (user_id, item_id) pairs.

    Rows keep their order; a pair with an id that the bundle does not have gets a null score, and is counted.
    """
    from ray_recsys.core.workflows.score import score as run

    with invocation.connect() as executor:
        result = run(live_bundle(bundle), input_path, output, executor, report=invocation.report)
    invocation.answer(result, facts(**result.model_dump(mode="json")))


def wait_for_interrupt() -> None:
    """Returns on Ctrl-C or SIGTERM instead of raising, so that the caller shuts down in order."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not stop.wait(timeout=3600):
            pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
