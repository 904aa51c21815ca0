"""Options of every command (--recipe, --set, --json, --address) and output of results. Imports nothing heavy."""

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
from pydantic import BaseModel

from ray_recsys.commands.output import Table, reserved_stdout, write_tables
from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.progress import Reporter, StderrReporter
from ray_recsys.storage.location import Location

if TYPE_CHECKING:
    from ray_recsys.distributed.executor import RayExecutor

_OVERRIDES = "ray_recsys.overrides"
_IN_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for what `ray job submit` runs


class InputLocation(click.ParamType[Location]):
    """A path or URI to read."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:  # noqa: ARG002
        """Returns the location."""
        return Location.of(value)


class OutputLocation(InputLocation):
    """A path or URI to write to. Inside a job a path must be absolute: a job runs in a temporary copy."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        """Returns the location."""
        if _IN_JOB in os.environ and "://" not in str(value) and not Path(value).is_absolute():
            self.fail(
                f"{value!r} is relative, but a job runs in a temporary copy; give an absolute path or a URI", param, ctx
            )
        return super().convert(value, param, ctx)


INPUT = InputLocation()
OUTPUT = OutputLocation()


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of a command: its recipe, its cluster, and the destinations of its progress and result."""

    command: str
    recipe: Recipe
    address: str | None
    as_json: bool
    report: Reporter
    stdout: TextIO

    @contextmanager
    def connect(self) -> Iterator["RayExecutor"]:
        """Joins the cluster at --address, or starts a local one for the block; yields an executor on it."""
        from ray_recsys.distributed.cluster import connect
        from ray_recsys.distributed.executor import RayExecutor

        self.report(f"joining Ray at {self.address}" if self.address else "starting Ray")
        with connect(self.address):
            yield RayExecutor(self.command, self.recipe.cluster, report=self.report)

    def answer(self, result: BaseModel, *tables: Table) -> None:
        """Writes the result to stdout: as one JSON object with --json, otherwise as tables."""
        if self.as_json:
            self.stdout.write(result.model_dump_json() + "\n")
            self.stdout.flush()
        else:
            write_tables(tables, self.stdout)


def takes_invocation_of(default_recipe: Path | None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator that adds the options shared by all commands.

    The decorated function receives an `Invocation` before its own options. Without --recipe, its recipe is
    `default_recipe` or all defaults.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @click.option("--recipe", "recipe_file", type=INPUT, metavar="FILE", help="TOML recipe; see jobs/recipes/.")
        @click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Recipe value: section.key=value.")
        @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout; everything else on stderr.")
        @click.option("--address", metavar="HOST:PORT", help="Ray to join; default: RAY_ADDRESS, or a new local one.")
        @functools.wraps(function)
        def run(
            recipe_file: Location | None,
            overrides: tuple[str, ...],
            as_json: bool,
            address: str | None,
            **arguments: Any,
        ) -> None:
            context = click.get_current_context()
            recipe = load_recipe(recipe_file or default_recipe, [*overrides, *context.meta.get(_OVERRIDES, [])])
            command = str(context.info_name)
            with reserved_stdout() as stdout, _reporter(command, as_json=as_json) as report:
                function(Invocation(command, recipe, address, as_json, report, stdout), **arguments)

        return run

    return decorate


@contextmanager
def _reporter(command: str, *, as_json: bool) -> Iterator[Reporter]:
    """Yields a progress display on stderr: a bar on a terminal, plain lines elsewhere and with --json."""
    if as_json or not sys.stderr.isatty():
        yield StderrReporter(command)
        return
    from ray_recsys.commands.terminal import TerminalReporter

    with TerminalReporter(command) as report:
        yield report


takes_invocation = takes_invocation_of(None)


def recipe_option(flag: str, key: str, **attributes: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns an option that sets a key of the recipe; it overrides --set and the file."""

    def override(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            context.meta.setdefault(_OVERRIDES, []).append(f"{key}={value}")

    return click.option(flag, expose_value=False, callback=override, **attributes)


def live_bundle(location: Location) -> Location:
    """Returns the location of a registry's live bundle; any other one as it is."""
    from ray_recsys.core.recommending.registry import CURRENT, Registry
    from ray_recsys.storage.files import is_file

    registry = Registry(location)
    return registry.locate(registry.current()) if is_file(location / CURRENT) else location
