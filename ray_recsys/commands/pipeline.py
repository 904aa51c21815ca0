"""The pipeline command: prepare → train → evaluate → publish as one job."""

from typing import TYPE_CHECKING

import click

from ray_recsys.commands.evaluation import evaluation_tables
from ray_recsys.commands.invocation import OUTPUT, Invocation, recipe_option, takes_invocation
from ray_recsys.commands.output import Table, facts
from ray_recsys.errors import WorseModelError
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.core.workflows.pipeline import PipelineResult


@click.command()
@click.option("--input", "inputs", multiple=True, required=True, metavar="PATH...", help="Log: files, folders or URIs.")
@click.argument("more_inputs", nargs=-1, metavar="")
@click.option("--output", type=OUTPUT, required=True, metavar="DIR", help="Output directory of the stages; kept.")
@click.option("--registry", type=OUTPUT, required=True, metavar="DIR", help="Registry of bundles.")
@click.option("--items", metavar="FILE", help="Side file of item titles and categories.")
@click.option("--test", "tests", multiple=True, metavar="FILE", help="Test interactions, for split.method = given.")
@recipe_option(
    "--min-ratio", "bundle.min_ratio", type=float, help="Required part of the live NDCG@10.  [default: 0.98]"
)
@click.option("--force", is_flag=True, help="Publish even a model that is worse than the live one.")
@takes_invocation
def pipeline(
    invocation: Invocation,
    *,
    inputs: tuple[str, ...],
    more_inputs: tuple[str, ...],
    output: Location,
    registry: Location,
    items: str | None,
    tests: tuple[str, ...],
    force: bool,
) -> None:
    """Prepares, trains, evaluates and publishes, as one job from one recipe.

    A stage whose inputs have not changed since the last run is skipped, an interrupted training resumed. Writes
    report.json and report.html. The exit status is 3 if the model is worse than the live one, which then stays.
    """
    from ray_recsys.core.workflows.pipeline import Pipeline
    from ray_recsys.distributed import training
    from ray_recsys.reports.pipeline_html import write_html
    from ray_recsys.storage.files import write_bytes

    with invocation.connect() as executor:
        run = Pipeline(output, registry, invocation.recipe, executor, training, invocation.report)
        result = run.run([*inputs, *more_inputs], items=items, test=tests, force=force)
    write_bytes(result.output / "report.json", f"{result.model_dump_json(indent=2)}\n".encode())
    write_html(result, result.output / "report.html")
    invocation.answer(result, *_tables(result))
    if result.refusal is not None:
        raise WorseModelError(result.refusal, remedy="publish with --force, or lower --min-ratio")


def _tables(result: "PipelineResult") -> list[Table]:
    rows = [(record.stage, record.status, record.seconds, record.digest) for record in result.stages]
    return [
        Table(("stage", "status", "seconds", "inputs"), rows),
        *evaluation_tables(result.evaluation),
        facts(
            gate=result.gate.describe() if result.gate else "skipped: nothing has changed since it was passed",
            live=result.live or "none",
            report=result.output / "report.html",
        ),
    ]
