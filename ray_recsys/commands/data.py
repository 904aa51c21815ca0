"""Commands on data: prepare a raw log, audit a prepared set, describe a prepared set."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from ray_recsys.commands.invocation import INPUT, OUTPUT, Invocation, takes_invocation
from ray_recsys.commands.output import Table, facts
from ray_recsys.errors import InputError
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.core.inspecting.describe import Description


@click.command()
@click.option("--input", "inputs", multiple=True, required=True, metavar="PATH...", help="Log: files, folders or URIs.")
@click.argument("more_inputs", nargs=-1, metavar="")
@click.option("--output", type=OUTPUT, required=True, metavar="DIR", help="Directory of the prepared set to write.")
@click.option("--items", metavar="FILE", help="Side file of item titles and categories.")
@click.option("--test", "tests", multiple=True, metavar="FILE", help="Test interactions, for split.method = given.")
@click.option("--overwrite", is_flag=True, help="Replace an existing prepared set.")
@takes_invocation
def prepare(
    invocation: Invocation,
    *,
    inputs: tuple[str, ...],
    more_inputs: tuple[str, ...],
    output: Location,
    items: str | None,
    tests: tuple[str, ...],
    overwrite: bool,
) -> None:
    """Turns a raw interaction log into a prepared set.

    A prepared set has one row per user, the user's history. Reads Parquet, CSV, TSV, MovieLens `::` files and JSON
    lines, from disk or any URI. Dropped rows are counted by reason.
    """
    from ray_recsys.core.preparing.pipeline import prepare as run

    with invocation.connect() as executor:
        manifest = run(
            [*inputs, *more_inputs],
            output,
            invocation.recipe,
            executor,
            items=items,
            test=tests,
            overwrite=overwrite,
            report=invocation.report,
        )
    dropped = Table(("rows dropped", "rows"), list(manifest.rows_dropped.items()))
    invocation.answer(
        manifest,
        facts(
            prepared=output,
            users=manifest.num_users,
            items=manifest.num_items,
            training=manifest.num_training,
            validation=manifest.num_validation,
            test=manifest.num_test,
            rows_in=manifest.rows_in,
            rows_kept=manifest.rows_kept,
        ),
        *([dropped] if manifest.rows_dropped else []),
    )


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="Directory of the prepared set.")
@takes_invocation
def audit(invocation: Invocation, data: Location) -> None:
    """Checks a prepared set for leakage and damage.

    The exit status is 2 if there is any.
    """
    from ray_recsys.core.inspecting.audit import audit as run

    with invocation.connect() as executor:
        found = run(data, executor, report=invocation.report)
    rows = [(finding.fault, finding.count, "; ".join(finding.examples[:3])) for finding in found.findings]
    verdict = facts(audited=data, passed=found.passed)
    invocation.answer(found, verdict, *([Table(("fault", "count", "examples"), rows)] if rows else []))
    if not found.passed:
        raise InputError(f"{data} did not pass the audit", remedy="prepare it again")


@click.command()
@click.option("--data", type=INPUT, required=True, metavar="DIR", help="Directory of the prepared set.")
@click.option("--html", type=OUTPUT, metavar="FILE", help="Also write an HTML page with plots.")
@takes_invocation
def describe(invocation: Invocation, data: Location, html: Location | None) -> None:
    """Describes a prepared set.

    Shows sizes, density, quantiles of activity and popularity, the time range and the dropped rows.
    """
    from ray_recsys.core.inspecting.describe import describe as run

    description = run(data)
    if html is not None:
        from ray_recsys.reports.describe_html import write_html

        write_html(description, html)
        invocation.report(f"wrote {html}")
    invocation.answer(description, *_description_tables(description))


def _description_tables(description: "Description") -> list[Table]:
    values = description.model_dump()
    counts = {name: value for name, value in values.items() if isinstance(value, int | float)}
    spreads = {"interactions per user": description.activity, "interactions per item": description.popularity}
    quantiles = tuple(description.activity.quantiles)
    rows = [
        (name, *spread.quantiles.values(), f"{spread.mean:.1f}", f"{spread.gini:.3f}")
        for name, spread in spreads.items()
    ]
    tables = [
        facts(data=description.data, **counts),
        Table(("quantile", *quantiles, "mean", "Gini"), rows),
        facts("split", **{name: _text(value) for name, value in description.split.items()}),
    ]
    if description.time is not None:
        tables.append(facts("time", first=_date(description.time.first_s), last=_date(description.time.last_s)))
    if description.rows_dropped:
        tables.append(Table(("rows dropped", "rows"), list(description.rows_dropped.items())))
    return tables


def _date(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _text(value: object) -> object:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {inner}" for key, inner in value.items())
    return value
