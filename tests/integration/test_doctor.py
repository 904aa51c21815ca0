import socket

import pytest

from ray_recsys.distributed.doctor import Check, examine
from ray_recsys.recipe_files import load_recipe

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
    assert found["trainers"].status == "ok"
    assert (found["replicas"].status, found["replicas"].detail) == ("ok", "1 Serve replicas need 0.25 CPUs")


def test_what_the_recipe_asks_too_much_is_found() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        asked = [f"serve.port={port}", "train.num_workers=64", "serve.fused=false", "serve.cpus_per_replica=2"]
        found = _by_name(examine(load_recipe(overrides=asked)).checks)
    assert found[f"port {port}"].status == "fail"
    assert found["trainers"].status == "fail"
    assert "64 workers need 32 CPUs" in found["trainers"].detail
    assert (found["replicas"].status, found["replicas"].detail) == ("fail", "3 Serve replicas need 6 CPUs; there are 4")


def test_gpus_that_are_not_there_are_found() -> None:
    found = _by_name(
        examine(load_recipe(overrides=["serve.port=0", "train.use_gpu=true", "train.num_workers=9"])).checks
    )
    assert found["trainers"].status == "fail"
    assert found["trainers"].detail.startswith("9 GPUs wanted")
