"""`ray-recsys <command>`: from a raw interaction log to recommendations over HTTP.

Exit status: 0 success; 2 bad usage or input (the message says how to fix it); 3 the quality gate kept the live bundle;
1 internal failure; 130 interrupted.
Imports nothing heavy, so that `--help` answers at once. The commands are in `ray_recsys.commands`.
"""

import os
import sys
import traceback
from collections.abc import Sequence

import click

from ray_recsys import __version__
from ray_recsys.commands.data import audit, describe, prepare
from ray_recsys.commands.evaluation import compare, evaluate
from ray_recsys.commands.machine import demo, doctor
from ray_recsys.commands.pipeline import pipeline
from ray_recsys.commands.recipe import init, recipe
from ray_recsys.commands.registry import ab, registry
from ray_recsys.commands.serving import publish, recommend, score, serve
from ray_recsys.commands.training import train, tune

TRACEBACK_VARIABLE = "RAY_RECSYS_TRACEBACK"
_COMMANDS = (
    init,
    recipe,
    pipeline,
    prepare,
    audit,
    describe,
    train,
    tune,
    evaluate,
    compare,
    publish,
    registry,
    serve,
    ab,
    recommend,
    score,
    doctor,
    demo,
)


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Lists the commands in pipeline order instead of alphabetically."""
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="ray-recsys")
def cli() -> None:
    """A recommender stack on Ray: from a raw interaction log to recommendations over HTTP."""


for _command in _COMMANDS:
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit status."""
    try:
        status = cli.main(args=arguments, prog_name="ray-recsys", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return 2
    except click.Abort:  # Ctrl-C
        return 130
    except BrokenPipeError:  # the reader of stdout closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the boundary: users read one line, whatever failed
        return _explain(error)
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> int:
    from ray_recsys.distributed.ray_errors import own_error  # noqa: PLC0415 - only a failure needs it

    own = own_error(error)
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    if own is not None:
        click.echo(f"ray-recsys: error: {own}", err=True)
        return own.exit_status
    text = str(error).strip().splitlines()
    click.echo(f"ray-recsys: failed: {type(error).__name__}: {text[0] if text else 'no message'}", err=True)
    click.echo(f"Set {TRACEBACK_VARIABLE}=1 to see where.", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
