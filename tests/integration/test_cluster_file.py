import logging
import tomllib

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

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


@pytest.mark.parametrize("node", ["head", "worker"])
def test_every_node_requires_the_token_that_is_copied_to_it(node: str) -> None:
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf8"))
    (start,) = [command for command in config[f"{node}_start_ray_commands"] if "ray start" in command]
    settings, _, _ = start.partition("ray start")
    assert "RAY_AUTH_MODE=token" in settings.split()
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


def _pinned_ray() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    pin: str = next(text for text in project["dependencies"] if text.startswith("ray["))
    return pin.partition("==")[2]
