"""The image and the Kubernetes resources: valid, pinned, without root, with the token; what they name is there."""

import copy
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from ray_recsys.config import ServeRecipe
from tests.contracts import ROOT

MEBIBYTES = {"Mi": 1, "Gi": 1024}
OBJECT_STORE_SHARE = 0.3
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf8")
RESOURCES = ("rayjob", "rayservice")


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    parts = (line.partition(" ") for line in joined.splitlines() if line.strip())
    return [(name, rest.strip()) for name, _, rest in parts]


def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]
    return project


def _validator() -> jsonschema.Draft202012Validator:
    schema = yaml.safe_load((ROOT / "tests/schemas/kuberay.yaml").read_text(encoding="utf8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def _resource(name: str) -> dict[str, Any]:
    resource: dict[str, Any] = yaml.safe_load((ROOT / f"deploy/kuberay/{name}.yaml").read_text(encoding="utf8"))
    return resource


def _cluster(resource: dict[str, Any]) -> dict[str, Any]:
    spec = resource["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return cluster


def _pods(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    cluster = _cluster(resource)
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield group["template"]["spec"]


def _mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * MEBIBYTES[quantity[-2:]]


def test_the_image_is_pinned_and_runs_without_root() -> None:
    instructions = _instructions()
    assert [rest for name, rest in instructions if name == "FROM"] == ["python:3.11.14-slim-bookworm"]
    users = [rest for name, rest in instructions if name == "USER"]
    assert users == ["1000"]  # a number: Kubernetes can then see that it is not root
    assert instructions.index(("USER", "1000")) > max(n for n, (name, _) in enumerate(instructions) if name == "RUN")
    assert any(name == "HEALTHCHECK" and "/healthz" in rest for name, rest in instructions)


def test_the_image_installs_what_pyproject_pins_and_nothing_else() -> None:
    runs = [rest for name, rest in _instructions() if name == "RUN"]
    installs = [command for run in runs for command in run.split("&&") if "pip install" in command]
    assert len(installs) == 2
    assert installs[0].split()[-2:] == ["-r", "/tmp/requirements.txt"]
    assert installs[1].split()[-2:] == ["--no-deps", "/app"]
    (code,) = re.findall(r'python -c "(.*?)"\s+>', DOCKERFILE.replace("\\\n", ""))
    printed = subprocess.run(
        [sys.executable, "-c", code.replace("/app/", f"{ROOT}/")], capture_output=True, text=True, check=True
    )
    assert printed.stdout.splitlines() == _project()["dependencies"]


def test_every_source_of_the_image_is_there_and_reaches_the_build() -> None:
    copied = [rest.split()[:-1] for name, rest in _instructions() if name == "COPY"]
    sources = [source for group in copied for source in group]
    assert all((ROOT / source).exists() for source in sources)
    lines = (ROOT / ".dockerignore").read_text(encoding="utf8").splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert kept == set(sources)


@pytest.mark.parametrize("name", RESOURCES)
def test_the_resources_fit_the_definitions_of_kuberay(name: str) -> None:
    _validator().validate(_resource(name))


def _rename(resource: dict[str, Any]) -> None:
    _cluster(resource)["headGroupSpecs"] = _cluster(resource).pop("headGroupSpec")


def _misspell_probe(resource: dict[str, Any]) -> None:
    pod = _cluster(resource)["workerGroupSpecs"][0]["template"]["spec"]
    pod["containers"][0]["readinesProbe"] = {"httpGet": {"port": 8000}}


def _number_as_variable(resource: dict[str, Any]) -> None:
    pod = _cluster(resource)["headGroupSpec"]["template"]["spec"]
    pod["containers"][0]["env"].append({"name": "RAY_num_workers_soft_limit", "value": 16})


@pytest.mark.parametrize("name", RESOURCES)
@pytest.mark.parametrize("damage", [_rename, _misspell_probe, _number_as_variable])
def test_the_extract_of_the_definitions_refuses_mistakes(name: str, damage: Callable[[dict[str, Any]], None]) -> None:
    resource = copy.deepcopy(_resource(name))
    damage(resource)
    assert not _validator().is_valid(resource)


@pytest.mark.parametrize("name", RESOURCES)
def test_pods_are_bounded_and_have_no_root_and_enough_shared_memory(name: str) -> None:
    resource = _resource(name)
    for pod in _pods(resource):
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert not container["image"].endswith(":latest")
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        shared = _mebibytes(volumes["shared-memory"]["emptyDir"]["sizeLimit"])
        assert shared >= OBJECT_STORE_SHARE * _mebibytes(container["resources"]["limits"]["memory"])


@pytest.mark.parametrize("name", RESOURCES)
def test_every_pod_requires_the_token_and_knows_the_bucket(name: str) -> None:
    resource = _resource(name)
    assert _cluster(resource)["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    assert f"ray[data,serve,train,tune]=={_cluster(resource)['rayVersion']}" in _project()["dependencies"]
    for pod in _pods(resource):
        names = [variable["name"] for variable in pod["containers"][0]["env"]]
        assert names.index("RECSYS_BUCKET") < names.index("RAY_RECSYS_REGISTRY")  # which refers to it
        assert "RAY_AUTH_MODE" in names
        assert not any("TOKEN" in variable or "SECRET" in variable for variable in names)  # Ray's comes from the secret


def test_the_service_is_the_shipped_configuration_for_other_machines() -> None:
    resource = _resource("rayservice")
    served = yaml.safe_load(resource["spec"]["serveConfigV2"])
    shipped = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf8"))
    limits = ServeRecipe.model_validate(served["applications"][0]["args"].pop("serve"))
    shipped["applications"][0]["args"].pop("serve")
    assert served["http_options"].pop("host") == limits.host == "0.0.0.0"
    shipped["http_options"].pop("host")
    assert served == shipped
    assert limits.ingress_replicas == 2
    (group,) = _cluster(resource)["workerGroupSpecs"]
    container = group["template"]["spec"]["containers"][0]
    room = group["replicas"] * int(container["resources"]["limits"]["cpu"])
    replicas = limits.ingress_replicas + limits.recall_replicas + limits.rerank_replicas
    assert replicas * limits.cpus_per_replica <= room
    port = served["http_options"]["port"]
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/healthz",
        "liveness": "/healthz",
        "readiness": "/readyz",
    }
    assert {probe["port"] for probe in probes.values()} == {port}
    assert any(variable["name"] == "RAY_RECSYS_API_KEYS_FILE" for variable in container["env"])
