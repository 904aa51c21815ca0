"""A `ray start --head` of a test's own: ports, token and temporary directory are that test's alone."""

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

RAY = str(Path(sys.executable).with_name("ray"))
_PROXY_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def head_environment() -> dict[str, str]:
    """Returns the environment of a head and its clients; what a session's Ray set for its own processes stays out."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
    proxies = {name: str(port) for name, port in zip(_PROXY_PORTS, free_ports(len(_PROXY_PORTS)), strict=True)}
    return {**inherited, **token, **proxies, "PATH": path}


@contextmanager
def running_head(environment: dict[str, str]) -> Iterator[str]:
    """Yields the address of a head's dashboard; the head is ended with all that it started."""
    port, dashboard_port, client_port, agent_port, grpc_port, metrics_port = free_ports(6)
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


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that are free and all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
