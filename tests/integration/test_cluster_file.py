import logging
import tomllib

import pytest
import yaml
from ray._private.ray_constants import DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
from ray.autoscaler._private.util import prepare_config, validate_config

from ray_recsys.distributed.doctor import OBJECT_STORE_SHARE
from tests.contracts import ROOT


def test_cluster_file_passes_the_launchers_own_validation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    prepared = prepare_config(config)
    validate_config(prepared)
    nodes = prepared["available_node_types"]
    assert nodes[prepared["head_node_type"]]["resources"].get("GPU", 0) == 0
    assert any(node["resources"].get("GPU", 0) > 0 for node in nodes.values())
    assert config["docker"]["head_image"].startswith(f"rayproject/ray:{_pinned_ray()}-")


def test_every_container_requires_the_token_that_is_copied_to_it() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in start


def test_no_directory_is_shared() -> None:
    text = (ROOT / "cluster.yaml").read_text(encoding="utf8")
    assert "nfs" not in text
    assert "/mnt" not in text
    config = yaml.safe_load(text)
    assert not any(option.startswith(("-v", "--volume")) for option in config["docker"]["run_options"])
    profiles = [node["node_config"]["IamInstanceProfile"]["Arn"] for node in config["available_node_types"].values()]
    assert len(set(profiles)) == 1


def test_shared_memory_passes_the_doctor() -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    options = [*config["docker"]["run_options"], *config["docker"].get("worker_run_options", [])]
    assert not any("--shm-size" in option for option in options)  # else the launcher would not measure the node
    launcher = 1.1 * DEFAULT_OBJECT_STORE_MEMORY_PROPORTION  # of the memory that is free: see `_auto_configure_shm`
    assert launcher * 0.95 >= OBJECT_STORE_SHARE


def _pinned_ray() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    pin: str = next(text for text in project["dependencies"] if text.startswith("ray["))
    return pin.partition("==")[2]
