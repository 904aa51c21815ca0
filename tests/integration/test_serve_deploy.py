"""`serve deploy serve_config.yaml` on a fresh head gives the recommender's answers."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.environment import free_ports
from tests.bundles import publish_bundle
from tests.contracts import ROOT
from tests.factories import make_prepared_set
from tests.ray_heads import head_environment, running_head

pytestmark = pytest.mark.ray
SERVE = str(Path(sys.executable).with_name("serve"))
FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def test_the_shipped_configuration_serves_the_live_bundle(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    publish_bundle(registry.path, make_prepared_set(tmp_path / "prepared"))
    environment = {**head_environment(), **FLAGS, "RAY_RECSYS_REGISTRY": str(registry.path)}
    configuration = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    (port,) = free_ports(1)
    configuration["http_options"]["port"] = port
    here = tmp_path / "serve_config.yaml"
    here.write_text(yaml.safe_dump(configuration))
    with running_head(environment) as dashboard:
        command = [SERVE, "deploy", f"--address={dashboard}", str(here)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        _wait_until_running(dashboard, environment)
        recommender = Recommender(registry.open())
        for user_idx in range(20):
            answer = _ask(port, recommender.bundle.users.id_of(user_idx))
            expected = recommender.recommend(Query(user_idx=user_idx)).item_idx
            shown = [item.item_id for item in recommender.bundle.catalogue.describe(expected)]
            assert [item["item_id"] for item in answer["items"]] == shown


def _wait_until_running(dashboard: str, environment: dict[str, str]) -> None:
    headers = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{dashboard}/api/serve/applications/", headers=headers)
    deadline_s = time.monotonic() + 90
    while True:
        with urllib.request.urlopen(request, timeout=10) as response:
            application = json.load(response)["applications"].get("ray-recsys", {})
        status = application.get("status")
        if status == "RUNNING":
            assert set(application["deployments"]) == {"ingress", "recall", "rerank"}
            return
        assert status != "DEPLOY_FAILED", application
        assert time.monotonic() < deadline_s, application
        time.sleep(0.3)


def _ask(port: int, user_id: int | str) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/recommend", json.dumps({"user_id": user_id}).encode())
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)
