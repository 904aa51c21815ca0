"""A `ray start --head` of a test's own: no other test uses its ports, token and temporary directory."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ray_recsys.distributed.environment import PROXY_PORTS, free_ports

RAY = str(Path(sys.executable).with_name("ray"))


def head_environment() -> dict[str, str]:
    """Returns the environment of a head and its clients, without what the session's Ray set for its own processes."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    return {**inherited, **token, **proxy_ports(), "PATH": path}


def proxy_ports() -> dict[str, str]:
    """Returns free ports for the proxies of a cluster, as environment variables."""
    return {name: str(port) for name, port in zip(PROXY_PORTS, free_ports(len(PROXY_PORTS)), strict=True)}


def head_options(dashboard_port: int, temporary: str) -> list[str]:
    """Returns the options of `ray start --head` that keep it apart from every other head of the machine."""
    port, client_port, agent_port, grpc_port, metrics_port = free_ports(5)
    return [
        *(f"--temp-dir={temporary}", f"--port={port}", f"--dashboard-port={dashboard_port}"),
        *(f"--ray-client-server-port={client_port}", f"--dashboard-agent-listen-port={agent_port}"),
        *(f"--dashboard-agent-grpc-port={grpc_port}", f"--metrics-export-port={metrics_port}"),
    ]


@contextmanager
def running_head(environment: dict[str, str]) -> Iterator[str]:
    """Yields the address of a head's dashboard; the head ends with everything that it started."""
    (dashboard_port,) = free_ports(1)
    # A short path, since sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as temporary:
        options = ["--block", "--num-cpus=2", "--disable-usage-stats", *head_options(dashboard_port, temporary)]
        command = [RAY, "start", "--head", *options]
        log = (Path(temporary) / "head.log").open("w+")
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(dashboard_port, head)
            yield f"http://127.0.0.1:{dashboard_port}"
        finally:
            head.terminate()  # ends the raylet in order; the rest of its process group is killed
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
