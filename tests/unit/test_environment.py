"""Ray's settings are made before Ray is imported, and never override the user's."""

import os
import socket
import subprocess
import sys

import pytest

from ray_recsys.distributed.environment import PROXY_PORTS, free_ports, set_defaults, set_proxy_ports, usable_port
from ray_recsys.errors import ClusterError


def test_settings_are_there_before_ray_is_imported() -> None:
    names = "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_num_workers_soft_limit"
    code = f"import os, sys, ray_recsys.distributed; print(*map(os.environ.get, {names}), 'ray' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert shown.stdout.split() == ["1", "16", "False"]


def test_what_is_set_already_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.setenv(PROXY_PORTS[0], "12345")
    for name in PROXY_PORTS[1:]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "to be restored")  # so that monkeypatch removes what is set below
        monkeypatch.delenv(name)
    set_defaults()
    set_proxy_ports()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert os.environ[PROXY_PORTS[0]] == "12345"
    chosen = {int(os.environ[name]) for name in PROXY_PORTS[1:]}
    assert len(chosen) == 3
    assert min(chosen) > 1023


def test_free_ports_differ_and_can_be_used() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert all(usable_port("127.0.0.1", port) == port for port in ports)
    assert usable_port("127.0.0.1", 0) > 1023


def test_a_port_in_use_and_a_foreign_host_are_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ClusterError, match=f"127.0.0.1:{port} .*in use") as refused:
            usable_port("127.0.0.1", port)
    assert "serve.port" in refused.value.remedy
    with pytest.raises(ClusterError, match=r"203\.0\.113\.77:"):  # an address reserved for documentation
        usable_port("203.0.113.77", 0)
