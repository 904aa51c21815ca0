import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from ray_recsys.cli import TRACEBACK_VARIABLE, cli, main
from ray_recsys.commands.invocation import OUTPUT, Invocation, recipe_option, takes_invocation
from ray_recsys.commands.output import facts
from ray_recsys.errors import DataError, StageError
from ray_recsys.storage.location import Location

Probe = Callable[[Callable[..., None]], None]
_SUBCOMMAND = {"registry": ["list"], "recipe": ["show"]}
HEAVY = ("ray", "torch", "faiss", "pyarrow", "numpy", "pandas", "rich")


class Answer(BaseModel):
    value: int


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Adds a command `probe` with the shared options to the group."""

    def add(function: Callable[..., None]) -> None:
        command = click.command()(takes_invocation(function))
        monkeypatch.setitem(cli.commands, "probe", command)

    return add


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import sys; from ray_recsys.cli import main; main(['--help']); "
        f"sys.stderr.write(' '.join(name for name in {HEAVY} if name in sys.modules))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == ""
    assert "prepare" in done.stdout
    # CPU time, not the clock's: other processes may hold the cores.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("name", list(cli.commands))
def test_every_command_takes_the_shared_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, *_SUBCOMMAND.get(name, []), "--help"]) == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--recipe", "--set", "--json", "--address"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["prepare"], "--input"),
        (["train", "--data", "x"], "--output"),
        (["train", "--data", "x", "--output", "y", "--no-such-option"], "--no-such-option"),
        (["unknown-command"], "unknown-command"),
        (["serve", "--registry", "x", "--port", "70000"], "70000"),
        (["doctor", "--set", "train.epoch=5"], "train.epoch"),
        (["doctor", "--set", "train.epochs=0"], "train.epochs = 0"),
        (["doctor", "--recipe", "no-such-file.toml"], "no-such-file.toml"),
        (["evaluate", "--model", "x", "--data", "y", "--protocol", "half"], "half"),
    ],
)
def test_wrong_usage_is_named_and_exits_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err
    assert "Traceback" not in captured.err


def test_missing_artefacts_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def _raises(error: BaseException) -> Callable[..., None]:
    def fail(_: Invocation) -> None:
        raise error

    return fail


class _TaskError(RuntimeError):
    """Stands for Ray's error of a task, which keeps what the task raised in `cause`."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a long text\nwith a remote stack trace")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (DataError("ratings.csv: no column item; found: a, b"), 2, "error: ratings.csv: no column item"),
        (StageError("every worker died"), 1, "error: every worker died"),
        (_TaskError(DataError("part 3 is damaged")), 2, "error: part 3 is damaged"),
        (ZeroDivisionError("division by zero"), 1, "failed: ZeroDivisionError: division by zero"),
        (_TaskError(KeyError("x")), 1, "failed: _TaskError: a long text"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_decide_the_exit_status(
    probe: Probe, error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    probe(_raises(error))
    assert main(["probe"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert text in captured.err
    assert "stack trace" not in captured.err
    assert (TRACEBACK_VARIABLE in captured.err) == ("failed:" in text)


def test_traceback_on_request(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    probe(_raises(ZeroDivisionError("division by zero")))
    assert main(["probe"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def _chatty(invocation: Invocation) -> None:
    sys.stdout.write("a library prints\n")
    subprocess.run(["echo", "a child prints"], check=True)
    invocation.report("working")
    invocation.answer(Answer(value=3), facts(value=3))


def test_json_is_alone_on_stdout(probe: Probe, capfd: pytest.CaptureFixture[str]) -> None:
    probe(_chatty)
    assert main(["probe", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"value": 3}
    assert all(text in captured.err for text in ("a library prints", "a child prints", "working"))


def test_people_get_a_table(probe: Probe, capfd: pytest.CaptureFixture[str]) -> None:
    probe(_chatty)
    assert main(["probe"]) == 0
    assert capfd.readouterr().out == "value  3\n"


def test_set_wins_over_the_file_and_a_flag_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[serve]\nport = 1\nmax_k = 7\n[train]\nepochs = 3\n")

    def tell(invocation: Invocation) -> None:
        recipe = invocation.recipe
        invocation.answer(
            Answer(value=0), facts(port=recipe.serve.port, epochs=recipe.train.epochs, k=recipe.serve.max_k)
        )

    command = click.command()(recipe_option("--port", "serve.port", type=int)(takes_invocation(tell)))
    monkeypatch.setitem(cli.commands, "probe", command)
    chosen = ["--recipe", str(file), "--set", "serve.port=2", "--set", "train.epochs=4"]
    assert main(["probe", *chosen, "--port", "3"]) == 0
    assert main(["probe", *chosen]) == 0
    assert capfd.readouterr().out == "port    3\nepochs  4\nk       7\nport    2\nepochs  4\nk       7\n"


def test_a_job_writes_to_absolute_paths_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main(["train", "--data", "/nowhere", "--output", "runs/1"]) == 2
    assert "'runs/1' is relative" in capsys.readouterr().err


def test_outputs_are_made_absolute_elsewhere() -> None:
    assert OUTPUT.convert("runs/1", None, None) == Location.of(Path.cwd() / "runs" / "1")


def test_a_closed_pipe_is_no_failure() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m ray_recsys.cli --help | head -1; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


def test_serving_ends_at_sigterm() -> None:
    code = (
        "import threading, os, signal; from ray_recsys.commands.serving import wait_for_interrupt; "
        "threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start(); wait_for_interrupt(); print('closed')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "closed\n"
