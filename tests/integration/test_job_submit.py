"""`ray job submit` against a head of its own: ports, token and temporary directory are this test's alone."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts import ROOT

pytestmark = pytest.mark.ray
RAY = str(Path(sys.executable).with_name("ray"))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The environment of head and submitter; what a session's Ray set for its own processes stays out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    return {**inherited, **token, "PATH": path}


@pytest.fixture(scope="module")
def dashboard(environment: dict[str, str]) -> Iterator[str]:
    """The address of a head's dashboard; the head is ended with all that it started."""
    port, dashboard_port, client_port, agent_port, grpc_port, metrics_port = _free_ports(6)
    with tempfile.TemporaryDirectory(
        prefix="ray-", ignore_cleanup_errors=True
    ) as temporary:  # short: sockets lie in it
        command = [
            *(RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={temporary}"),
            *(f"--port={port}", f"--dashboard-port={dashboard_port}", f"--ray-client-server-port={client_port}"),
            *(f"--dashboard-agent-listen-port={agent_port}", f"--dashboard-agent-grpc-port={grpc_port}"),
            f"--metrics-export-port={metrics_port}",
        ]
        log = (Path(temporary) / "head.log").open("w+")
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(dashboard_port, head)
            yield f"http://127.0.0.1:{dashboard_port}"
        finally:
            head.terminate()  # ends the raylet in order; what is left of its group is killed
            with contextlib.suppress(subprocess.TimeoutExpired):
                head.wait(15)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            head.wait(10)
            log.close()


def _wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        assert head.poll() is None, "ray start ended"
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail("the dashboard did not answer within 60 s")


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
