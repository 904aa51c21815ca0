import socket
from pathlib import Path

import pytest
import ray

from ray_recsys.cli import main
from ray_recsys.config.files import load_recipe
from ray_recsys.distributed import doctor
from ray_recsys.distributed.doctor import Check, examine

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def _by_name(checks: tuple[Check, ...]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_a_ready_machine_passes_and_every_doubt_has_a_remedy() -> None:
    checks = examine(load_recipe(overrides=["serve.port=0"])).checks
    found = _by_name(checks)
    assert [check for check in checks if check.status == "fail"] == []
    assert all(check.remedy for check in checks if check.status != "ok")
    assert "4 CPUs" in found["ray"].detail
    assert found["a task"].detail.startswith("ran with ray_recsys ")
    assert (found["node auth"].status, found["node auth"].detail) == ("ok", "the token is required on all nodes (1)")
    assert found["trainers"].status == "ok"
    assert (found["replicas"].status, found["replicas"].detail) == ("ok", "2 Serve replicas need 0.5 CPUs")


def test_what_the_recipe_asks_too_much_is_found() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        asked = [f"serve.port={port}", "cluster.num_workers=64", "serve.fused=false", "serve.cpus_per_replica=2"]
        found = _by_name(examine(load_recipe(overrides=asked)).checks)
    assert found[f"port {port}"].status == "fail"
    assert found["trainers"].status == "fail"
    assert "64 train workers need 48 CPUs" in found["trainers"].detail  # as training itself says
    assert found["trainers"].remedy.startswith("lower cluster.num_workers or cluster.cpus_per_worker")
    assert (found["replicas"].status, found["replicas"].detail) == (
        "fail",
        "4 Serve replicas need 8 CPUs, the cluster has 4",
    )


def test_gpus_that_are_not_there_are_found() -> None:
    asked = ["serve.port=0", "cluster.use_gpu=true", "cluster.num_workers=9", "cluster.cpus_per_worker=0.1"]
    found = _by_name(examine(load_recipe(overrides=asked)).checks)
    assert found["trainers"].status == "fail"
    assert found["trainers"].detail.startswith("9 train workers need 9 GPUs (one each)")


def test_what_is_missing_is_a_doubt_where_nodes_may_come() -> None:
    asked = ["serve.port=0", "cluster.wait_for_nodes=true", "cluster.num_workers=64", "serve.cpus_per_replica=99"]
    checks = examine(load_recipe(overrides=asked)).checks
    found = _by_name(checks)
    assert [check for check in checks if check.status == "fail"] == []
    assert (found["trainers"].status, found["replicas"].status) == ("warn", "warn")
    assert "64 train workers need 48 CPUs" in found["trainers"].detail
    assert found["replicas"].detail == "2 Serve replicas need 198 CPUs, the cluster has 4"


def test_a_check_that_cannot_be_made_fails_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "absent"))

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("no such cluster")

    monkeypatch.setattr(ray, "cluster_resources", refuse)
    checks = examine(load_recipe(overrides=["serve.port=0"])).checks
    failed = {check.name: check.detail for check in checks if check.status == "fail"}
    assert set(failed) == {"disk for Ray", "ray", "replicas"}
    assert failed["disk for Ray"].startswith("FileNotFoundError: ")
    assert failed["ray"] == failed["replicas"] == "ValueError: no such cluster"
    assert {"open files", "auth", "a task", "trainers"} <= _by_name(checks).keys()


OPEN = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
TOKEN = {"RAY_AUTH_MODE": "token"}
TO = "export RAY_AUTH_MODE=token"


@pytest.mark.parametrize(
    ("environment", "has_token_file", "expected"),
    [
        (OPEN, False, ("warn", "gRPC ports", "export RAY_AUTH_MODE=token; ray get-auth-token --generate")),
        ({}, False, ("warn", "who reaches the dashboard's port can", "export RAY_AUTH_MODE=token; ray get-auth-tok")),
        (OPEN | {"RAY_AUTH_MODE": "disabled"}, True, ("warn", "gRPC ports", "export RAY_AUTH_MODE=token")),
        (TOKEN, False, ("fail", "mode token, no token", "ray get-auth-token --generate")),
        (OPEN | TOKEN, True, ("ok", "mode token, a token", "")),
        (TOKEN | {"RAY_AUTH_TOKEN": "x"}, False, ("ok", "mode token, a token", "")),
        (
            OPEN,
            True,
            ("warn", "on a node without the token, anyone who reaches the dashboard's port or the replicas' gR", TO),
        ),
    ],
)
def test_open_ports_are_found(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    has_token_file: bool,
    expected: tuple[str, str, str],
) -> None:
    token = tmp_path / "auth_token"
    if has_token_file:
        token.write_text("secret")
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_SERVE_THROUGHPUT_OPTIMIZED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"RAY_AUTH_TOKEN_PATH": str(token)}).items():
        monkeypatch.setenv(name, value)
    check = doctor._check_auth()
    status, detail, remedy = expected
    assert check.status == status
    assert detail in check.detail
    assert check.remedy.startswith(remedy)
    assert bool(check.remedy) == bool(remedy)


@pytest.mark.parametrize(
    ("nodes", "status", "named"),
    [
        ([("10.0.0.1", (True, True)), ("10.0.0.2", (True, True))], "ok", "all nodes (2)"),
        ([("10.0.0.1", (True, True)), ("10.0.0.2", (False, True))], "fail", "on 10.0.0.2: anyone who reaches the gRPC"),
        ([("10.0.0.1", (False, False)), ("10.0.0.2", (True, True))], "warn", "on 10.0.0.1: anyone who reaches Ray"),
    ],
)
def test_nodes_that_require_no_token_are_named(
    nodes: list[tuple[str, tuple[bool, bool]]], status: str, named: str
) -> None:
    check = doctor._judge_nodes(nodes)
    assert check.status == status
    assert named in check.detail
    assert bool(check.remedy) == (status != "ok")


def test_a_ray_that_cannot_be_joined_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(doctor, "connect", refuse)
    checks = examine(load_recipe(overrides=["serve.port=0"])).checks
    assert [check.detail for check in checks if check.status == "fail"] == ["OSError: no space left"]
    assert "memory" in _by_name(checks)


def test_the_command_fails_with_the_names_of_what_would_fail(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--set", "serve.port=0", "--set", "cluster.num_workers=64", "--set", "serve.cpus_per_replica=99"]
    assert main(["doctor", *asked]) == 2
    printed = capsys.readouterr()
    assert "this machine is not ready: trainers, replicas; see the remedies above" in printed.err
    assert "64 train workers need 48 CPUs" in printed.out
