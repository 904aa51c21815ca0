"""`ray job submit` against a head of its own."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts import ROOT
from tests.ray_heads import RAY, head_environment, running_head

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return head_environment()


@pytest.fixture(scope="module")
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    with running_head(environment) as address:
        yield address


def _submit(dashboard: str, environment: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", f"--address={dashboard}", "--working-dir=.", "--", "python", *entrypoint]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _json_result(output: str) -> dict[str, object]:
    lines = [line for line in output.splitlines() if line.startswith("{")]
    assert lines, output
    result: dict[str, object] = json.loads(lines[-1])
    return result


def test_a_job_prepares_a_log(dashboard: str, environment: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = [f"u{user},i{item % 7},{1000 + item}" for user in range(20) for item in range(user, user + 5)]
    log.write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    output = tmp_path / "prepared"
    done = _submit(dashboard, environment, "jobs/prepare.py", "--input", str(log), "--output", str(output))
    assert done.returncode == 0, done.stdout + done.stderr
    assert _json_result(done.stdout)["num_users"] == 20
    assert (output / "manifest.json").is_file()
