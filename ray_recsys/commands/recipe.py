"""Commands on recipes: init writes a first one for a log; recipe shows, checks and explains one."""

from pathlib import Path

import click
from pydantic import BaseModel

from ray_recsys.commands.invocation import INPUT, Invocation, takes_invocation
from ray_recsys.commands.output import Table, facts
from ray_recsys.storage.location import Location


class RecipeCheck(BaseModel):
    """Result of a recipe's check."""

    valid: bool = True
    log_files: int | None = None
    data_differs: str | None = None
    """Differences from the recipe of the prepared set; empty: none."""


class Explanation(BaseModel):
    """Keys of a recipe."""

    keys: list[dict[str, object]]


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--input", "inputs", multiple=True, required=True, metavar="PATH...", help="Log: files, folders or URIs.")
@click.argument("more_inputs", nargs=-1, metavar="")
@takes_invocation
def init(invocation: Invocation, *, directory: Path, inputs: tuple[str, ...], more_inputs: tuple[str, ...]) -> None:
    """Writes a first recipe.toml and serve_config.yaml for a log into DIR.

    Guesses from the first rows which columns hold users, items, times and ratings; every guess is commented. Columns
    given with --set input.user_column=NAME and --set input.item_column=NAME are not guessed. Overwrites nothing.
    """
    from ray_recsys.core.workflows.starter_recipe import write_starter

    written = write_starter(directory, [*inputs, *more_inputs], invocation.recipe.input)
    invocation.answer(written, facts(**written.model_dump(mode="json")))


@click.group()
def recipe() -> None:
    """Shows, checks or explains a recipe."""


@recipe.command()
@click.option("--changed", is_flag=True, help="Only what differs from the defaults.")
@takes_invocation
def show(invocation: Invocation, *, changed: bool) -> None:
    """Prints the recipe that --recipe and --set give, as TOML."""
    from ray_recsys.config.files import dump_full_recipe, dump_recipe

    if invocation.as_json:
        invocation.answer(invocation.recipe)
        return
    invocation.stdout.write((dump_recipe if changed else dump_full_recipe)(invocation.recipe))
    invocation.stdout.flush()


@recipe.command()
@click.option("--input", "inputs", multiple=True, metavar="PATH...", help="Log that has the recipe's columns.")
@click.argument("more_inputs", nargs=-1, metavar="")
@click.option("--data", type=INPUT, metavar="DIR", help="Prepared set to compare with.")
@takes_invocation
def check(
    invocation: Invocation, *, inputs: tuple[str, ...], more_inputs: tuple[str, ...], data: Location | None
) -> None:
    """Checks a recipe, against a log or a prepared set if one is given.

    The exit status is 2 if a key or value is wrong, or the log lacks a column. Differences from the recipe of a
    prepared set are reported, not treated as errors.
    """
    from ray_recsys.core.prepared import PreparedSet
    from ray_recsys.core.preparing.log_files import list_log_files
    from ray_recsys.core.preparing.log_reader import plan_chunks
    from ray_recsys.core.preparing.pipeline import describe_difference

    result = RecipeCheck()
    if inputs:
        files = list_log_files([*inputs, *more_inputs], invocation.recipe.input.format)
        plan_chunks(files, invocation.recipe.input)
        result = result.model_copy(update={"log_files": len(files)})
    if data is not None:
        differs = describe_difference(PreparedSet.open(data).manifest, invocation.recipe)
        result = result.model_copy(update={"data_differs": differs})
    invocation.answer(result, facts(**result.model_dump()))


@recipe.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@takes_invocation
def explain(invocation: Invocation, *, keys: tuple[str, ...]) -> None:
    """Shows what keys or sections accept, their defaults and what they do.

    For example `ray-recsys recipe explain train.batch_size feed`. Without a key, all are listed.
    """
    from ray_recsys.config.explain import explain as run

    found = [entry for key in keys or ("",) for entry in run(key, invocation.recipe)]
    rows = [
        (entry.key, _text(entry.default), _text(entry.value) if entry.value != entry.default else "", entry.accepts)
        for entry in found
    ]
    texts = [(entry.key, entry.description) for entry in found if entry.description]
    tables = [
        Table(("key", "default", "set to", "accepts"), rows),
        *([Table(("key", "what it does"), texts)] if texts else []),
    ]
    invocation.answer(Explanation(keys=[entry.model_dump() for entry in found]), *tables)


def _text(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
