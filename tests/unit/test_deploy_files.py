"""The dashboard and the alert rules ask for metrics that exist, and the runbook has a first step for every alert."""

import json
import re
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.contracts import ROOT
from tests.factories import make_prepared_set

NAME = re.compile(r"ray_recsys_[a-z_]+")


def _names(tmp_path: Path) -> set[str]:
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    client = AppClient(local_api(tmp_path / "registry"))
    client.request("POST", "/v1/recommend", json={})
    client.request("GET", "/v1/bundle", headers={"Host": "evil.example"})
    text = client.request("GET", "/metrics").text
    client.close()
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def test_every_metric_asked_for_exists_and_every_alert_has_a_first_step(tmp_path: Path) -> None:
    names = _names(tmp_path)
    dashboard = json.loads((ROOT / "deploy/grafana/serving.json").read_text())
    groups = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [rule["expr"] for rule in rules]
    assert len(asked) > 15
    for expression in asked:
        found = NAME.findall(expression)
        assert found, expression
        assert set(found) <= names, expression
        assert expression.count("(") == expression.count(")")
    runbook = (ROOT / "docs/serving.md").read_text()
    assert all(f"| {rule['alert']} |" in runbook for rule in rules)
    assert {rule["labels"]["severity"] for rule in rules} == {"page", "ticket"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))


def test_every_route_is_in_the_handbook(tmp_path: Path) -> None:
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    client = AppClient(local_api(tmp_path / "registry"))
    paths = client.request("GET", "/openapi.json").json()["paths"]
    client.close()
    text = (ROOT / "docs/serving.md").read_text()
    assert [path for path in paths if path.split("/{")[0] not in text] == []
