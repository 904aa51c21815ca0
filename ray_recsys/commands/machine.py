"""Commands on the machine: doctor, and the demo of the whole pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ray_recsys.commands.evaluation import evaluation_tables
from ray_recsys.commands.invocation import OUTPUT, Invocation, recipe_option, takes_invocation, takes_invocation_of
from ray_recsys.commands.output import Table, facts
from ray_recsys.commands.serving import wait_for_interrupt
from ray_recsys.errors import ClusterError
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.distributed.demo import DemoResult

_SEEN_SHOWN = 10
_DEMO_RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"


@click.command()
@takes_invocation
def doctor(invocation: Invocation) -> None:
    """Checks what would fail on this machine or its cluster.

    The exit status is 2 if anything would.
    """
    from ray_recsys.distributed.doctor import examine

    diagnosis = examine(invocation.recipe, invocation.address, report=invocation.report)
    rows = [(check.status, check.name, check.detail, check.remedy) for check in diagnosis.checks]
    invocation.answer(diagnosis, Table(("", "check", "found", "remedy"), rows))
    failed = [check.name for check in diagnosis.checks if check.status == "fail"]
    if failed:
        raise ClusterError(f"this machine is not ready: {', '.join(failed)}", remedy="see the remedies above")


@click.command()
@click.option("--once", is_flag=True, help="Exit after printing the recommendations instead of serving.")
@click.option("--directory", type=OUTPUT, default="demo-data", metavar="DIR", help="Directory to write everything to.")
@click.option("--user", "user_id", type=int, default=1, metavar="ID", help="User whose recommendations are printed.")
@recipe_option("--port", "serve.port", type=click.IntRange(0, 65535), help="0 chooses a free one.")
@takes_invocation_of(_DEMO_RECIPE)
def demo(invocation: Invocation, *, once: bool, directory: Location, user_id: int) -> None:
    """Runs the whole pipeline on 100,004 MovieLens ratings.

    prepare → train → evaluate → publish → serve, then a request over HTTP; takes two or three minutes on 2 cores.
    """
    from ray_recsys.distributed.demo import demo as run

    with (
        invocation.connect() as executor,
        run(Path(directory), invocation.recipe, executor, user_id=user_id, report=invocation.report) as result,
    ):
        invocation.answer(result, *demo_tables(result))
        if not once:
            invocation.report(f"the page: {result.page}   the API: {result.api_docs}   Ctrl-C stops")
            wait_for_interrupt()
            invocation.report("stopping")


def demo_tables(result: "DemoResult") -> list[Table]:
    """Returns the demo's tables: what the user saw, what is recommended and what is popular, and the metrics."""
    names = ("recommended by NeuMF", "score", "most popular, unseen")
    pairs = [
        (number, ours.title, ours.score, theirs.title)
        for number, (ours, theirs) in enumerate(zip(result.recommended, result.popular, strict=True), start=1)
    ]
    return [
        Table((f"user {result.user_id} saw, latest first",), [(movie.title,) for movie in result.seen[:_SEEN_SHOWN]]),
        Table(("", *names), pairs, f"POST {result.page}v1/recommend for user {result.user_id} answers"),
        *evaluation_tables(result.evaluation),
        facts("seconds", **result.stage_s),
    ]
