"""Ray's settings are made before Ray is imported, and never against the person's own."""

import os
import subprocess
import sys

import pytest

from ray_recsys.distributed.environment import set_defaults, set_proxy_ports

PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def test_settings_are_there_before_ray_is_imported() -> None:
    names = "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_num_workers_soft_limit"
    code = f"import os, sys, ray_recsys.distributed; print(*map(os.environ.get, {names}), 'ray' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert shown.stdout.split() == ["1", "16", "False"]


def test_what_is_set_already_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    monkeypatch.setenv(PORTS[0], "12345")
    for name in PORTS[1:]:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "to be restored")  # so that monkeypatch takes away what is set below
        monkeypatch.delenv(name)
    set_defaults()
    set_proxy_ports()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert os.environ[PORTS[0]] == "12345"
    chosen = {int(os.environ[name]) for name in PORTS[1:]}
    assert len(chosen) == 3
    assert min(chosen) > 1023
