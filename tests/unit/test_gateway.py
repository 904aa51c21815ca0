"""What a request passes before it is parsed: each refusal is a problem, and each is counted and has a request id."""

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.errors import InputError
from ray_recsys.serving import keys
from ray_recsys.serving.gateway import Gateway
from ray_recsys.serving.metrics import Metrics
from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

SECRETS = {"shop": "recommend", "desk": "recommend,browse", "ops": "admin"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("gateway")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    return home / "registry"


@pytest.fixture
def keys_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "keys"
    lines = [f"{name} {hashlib.sha256(name.encode()).hexdigest()} {scopes}" for name, scopes in SECRETS.items()]
    path.write_text("# keys\n\n" + "\n".join(lines) + "\n")
    monkeypatch.setenv(keys.VARIABLE, str(path))
    return path


@contextmanager
def client_of(registry: Path, **limits: Any) -> Iterator[AppClient]:
    client = AppClient(local_api(registry, ServeRecipe(**limits)))
    try:
        yield client
    finally:
        client.close()


def _bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v1/recommend/user-00001", {"shop", "desk"}),
        ("/v1/bundle", {"shop", "desk"}),
        ("/v1/users", {"desk"}),
        ("/v1/users/user-00001/seen", {"desk"}),
        ("/", {"desk"}),
        ("/docs", {"desk"}),
        ("/metrics", {"ops"}),
    ],
)
@pytest.mark.usefixtures("keys_file")
def test_a_key_opens_the_routes_of_its_scopes(registry: Path, path: str, allowed: set[str]) -> None:
    with client_of(registry) as client:
        statuses = {name: client.request("GET", path, headers=_bearer(name)).status_code for name in SECRETS}
        assert statuses == {name: 200 if name in allowed else 403 for name in SECRETS}
        for headers in ({}, _bearer("wrong"), {"Authorization": "Basic !"}, {"Authorization": "shop"}):
            refused = client.request("GET", path, headers=headers)
            assert (refused.status_code, refused.headers["content-type"]) == (401, "application/problem+json")
            assert "Bearer" in refused.headers["www-authenticate"]
        basic = base64.b64encode(f"me:{min(allowed)}".encode()).decode()
        assert client.request("GET", path, headers={"Authorization": f"Basic {basic}"}).status_code == 200
        assert client.request("GET", "/healthz").status_code == client.request("GET", "/readyz").status_code == 200


@pytest.mark.parametrize("line", ["shop", "shop abc recommend", f"shop {'0' * 64} root", f"shop {'0' * 64}"])
def test_a_wrong_line_of_the_keys_is_named_without_its_digest(tmp_path: Path, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"\n{line}\n")
    with pytest.raises(InputError, match="line 2") as refused:
        keys.read_keys(path)
    assert "0" * 64 not in str(refused.value)
    path.write_text("# nobody\n")
    with pytest.raises(InputError, match="no key"):
        keys.read_keys(path)


def test_other_machines_are_let_in_with_keys_or_by_force_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys_file: Path
) -> None:
    keys.check_exposure("0.0.0.0", allow_open=False)
    monkeypatch.delenv(keys.VARIABLE)
    with pytest.raises(InputError, match=r"serve\.host = 0\.0\.0\.0"):
        keys.check_exposure("0.0.0.0", allow_open=False)
    keys.check_exposure("0.0.0.0", allow_open=True)
    keys.check_exposure("127.0.0.1", allow_open=False)
    assert keys_file.parent == tmp_path


def test_without_keys_users_and_the_page_are_for_loopback(registry: Path) -> None:
    with client_of(registry, host="0.0.0.0", allow_open=True) as client:
        for path in ("/v1/users", "/v1/users/user-00001/seen", "/", "/docs", "/app.js"):
            assert client.request("GET", path).status_code == 403
        assert client.request("GET", "/v1/recommend/user-00001", headers={"Host": "shop.example"}).status_code == 200


def test_a_host_that_is_not_ours_is_refused(registry: Path) -> None:
    with client_of(registry, allowed_hosts=("shop.example",)) as client:
        statuses = {
            host: client.request("GET", "/v1/bundle", headers={"Host": host}).status_code
            for host in ("localhost:8000", "[::1]:8000", "shop.example", "evil.example", "localhost.evil.example")
        }
    assert list(statuses.values()) == [200, 200, 200, 421, 421]


@pytest.mark.usefixtures("keys_file")
def test_a_key_has_a_rate(registry: Path) -> None:
    with client_of(registry, rate_per_key=5) as client:
        answers = [client.request("GET", "/v1/bundle", headers=_bearer("shop")) for _ in range(30)]
        assert {one.status_code for one in answers} == {200, 429}
        assert next(one for one in answers if one.status_code == 429).headers["retry-after"] == "1"
        assert client.request("GET", "/v1/bundle", headers=_bearer("desk")).status_code == 200


def test_a_request_id_is_kept_or_made_and_logged(registry: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ray_recsys.access")
    with client_of(registry, access_log=True) as client:
        kept = client.request("GET", "/v1/users/user-00001/seen", headers={"X-Request-Id": "abc-1"})
        made = [client.request("GET", path, headers={"X-Request-Id": "a b"}) for path in ("/healthz", "/absent")]
    ids = [one.headers["x-request-id"] for one in (kept, *made)]
    assert ids[0] == "abc-1"
    assert len(set(ids)) == 3
    lines = [json.loads(record.message) for record in caplog.records if record.name == "ray_recsys.access"]
    assert [line["request_id"] for line in lines] == ids
    assert [line["status"] for line in lines] == [200, 200, 404]
    assert "user-00001" not in caplog.text


def test_slow_requests_are_logged_without_an_access_log(registry: Path, caplog: pytest.LogCaptureFixture) -> None:
    with client_of(registry, slow_ms=1e-6) as client:
        client.request("GET", "/healthz")
    (line,) = [json.loads(record.message) for record in caplog.records if record.name == "ray_recsys.access"]
    assert line["slow"]


def test_the_metrics_tell_what_happened(registry: Path) -> None:
    with client_of(registry) as client:
        client.request("POST", "/v1/recommend", json={"user_id": "user-00001"})
        client.request("POST", "/v1/recommend", json={"k": 200})
        client.request("GET", "/v1/bundle", headers={"Host": "evil.example"})
        text = client.request("GET", "/metrics").text
    samples = {
        (sample.name, tuple(sorted(item for item in sample.labels.items() if item[0] != "replica"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }

    def of(name: str, **labels: str) -> float:
        return float(samples[(f"ray_recsys_{name}", tuple(sorted(labels.items())))])

    assert of("answers_total", arm="A", source="two-stage") == of("answers_total", arm="A", source="popular") == 1
    assert of("request_seconds_count", route="recommend", status="200") == 2
    assert of("request_seconds_count", route="bundle", status="421") == 1
    assert of("refusals_total", reason="wrong-host") == of("short_answers_total") == 1
    assert of("stage_seconds_count", stage="recall") == of("batch_queries_sum") == 2
    assert of("swap_failing") == 0
    version = Registry(registry).current()
    assert [dict(labels)["version"] for name, labels in samples if name == "ray_recsys_bundle_info"] == [version]


def test_a_scrape_has_the_metrics_of_every_replica_once(registry: Path) -> None:
    first, second = local_api(registry), local_api(registry)
    second.metrics.replica = "other-1"
    for api, num_requests in ((first, 2), (second, 3)):
        client = AppClient(api)
        for _ in range(num_requests):
            client.request("POST", "/v1/recommend", json={})
        client.close()

    async def all_replicas() -> list[list[Metric]]:
        return [first.own_metrics(), second.own_metrics()]

    first.all_replicas = all_replicas
    text = asyncio.run(first.scrape()).decode()
    answers = _answers_by_replica(text)
    assert sorted(answers.values()) == [2, 3]
    assert answers["other-1"] == 3
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len({line.rpartition(" ")[0] for line in lines})
    assert text.count("# TYPE ray_recsys_answers_total") == 1

    async def fail() -> list[list[Metric]]:
        raise RuntimeError("no controller")

    first.all_replicas = fail
    assert list(_answers_by_replica(asyncio.run(first.scrape()).decode()).values()) == [2]


def _answers_by_replica(text: str) -> dict[str, float]:
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["ray_recsys_answers"].samples
    return {one.labels["replica"]: one.value for one in samples if one.labels["source"] == "popular"}


class _Exchange:
    """Calls a gateway over an app that waits until it is told to answer."""

    def __init__(self, **limits: Any) -> None:
        self.go = asyncio.Event()
        self.num_reached = 0
        self.gateway = Gateway(self._app, ServeRecipe(**limits), Metrics(), None, {})

    async def _app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        del scope, receive
        self.num_reached += 1
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(self, path: str = "/v1/bundle", **headers: str) -> tuple[int, dict[bytes, bytes]]:
        sent: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        async def receive() -> MutableMapping[str, Any]:
            raise AssertionError("a refused request's body is not read")

        given = [(b"host", b"localhost"), *((name.encode(), value.encode()) for name, value in headers.items())]
        scope = {"type": "http", "path": path, "method": "GET", "headers": given}
        await self.gateway(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])


def _run(body: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(body(), 20))


def test_past_the_bound_every_route_refuses_within_milliseconds_and_unread() -> None:
    async def body() -> None:
        exchange = _Exchange(max_waiting=4)
        asked = [asyncio.create_task(exchange.ask()) for _ in range(4 + 16)]
        await asyncio.sleep(0)
        start_s = time.perf_counter()
        for path in ("/v1/recommend", "/v1/items", "/v1/users", "/", "/metrics"):
            status, headers = await exchange.ask(path)
            assert (status, headers[b"retry-after"]) == (503, b"1")
        assert time.perf_counter() - start_s < 0.1
        assert exchange.num_reached == 20
        exchange.go.set()
        assert {status for status, _ in await asyncio.gather(*asked)} == {200}
        assert exchange.gateway.num_in_flight == 0
        assert (await exchange.ask())[0] == 200

    _run(body)


def test_a_request_has_a_time_limit_and_a_size_limit() -> None:
    async def body() -> None:
        exchange = _Exchange(timeout_s=0.05)
        assert (await exchange.ask())[0] == 503
        assert exchange.gateway.num_in_flight == 0
        assert (await exchange.ask(**{"content-length": str(1 << 30)}))[0] == 413
        assert exchange.num_reached == 1

    _run(body)
