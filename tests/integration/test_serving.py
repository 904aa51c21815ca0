"""The graph on a real Ray: same answers as offline, new versions, dead replicas, too many requests."""

import http.client
import json
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.config import Recipe, ServeRecipe
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serving.local import serve
from ray_recsys.errors import ClusterError, RegistryError
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    status: int
    kind: str
    retry_after: str | None
    body: Any


@dataclass(frozen=True)
class Graph:
    """A running graph, and where its bundles come from."""

    address: str
    registry: Registry
    prepared: Any

    def ask(self, body: Any) -> Answer:
        return _fetch(urllib.request.Request(f"{self.address}/v1/recommend", json.dumps(body).encode()))

    def live_version(self) -> str:
        version: str = _fetch(urllib.request.Request(f"{self.address}/healthz")).body["bundle"]
        return version


def _fetch(request: urllib.request.Request) -> Answer:
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return Answer(response.status, response.headers.get_content_type(), None, json.load(response))
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        kind = error.headers.get_content_type()
        body = json.loads(text) if kind == PROBLEM else text
        return Answer(error.code, kind, error.headers.get("Retry-After"), body)


@pytest.fixture(scope="module", params=["fused", "apart"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Graph]:
    home = tmp_path_factory.mktemp(request.param)
    prepared = make_prepared_set(home / "prepared")
    registry = Registry(home / "registry")
    publish_bundle(registry.path, prepared, seed=1)
    settings = ServeRecipe(port=0, fused=request.param == "fused", max_waiting=2)
    with serve(registry.path, Recipe(serve=settings)) as address:
        yield Graph(address, registry, prepared)


def test_what_cannot_be_served_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(RegistryError), serve(tmp_path / "empty", Recipe()):
        pass
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        recipe = Recipe(serve=ServeRecipe(port=port))
        with pytest.raises(ClusterError, match=str(port)), serve(tmp_path / "registry", recipe):
            pass


def test_http_answers_as_the_recommender_does(graph: Graph) -> None:
    _check_same_as_offline(graph, graph.registry.current())
    assert graph.ask({"history": ["item-0003"], "k": 3}).body["source"] == "fold-in"


def test_a_value_above_its_limit_is_a_problem(graph: Graph) -> None:
    answer = graph.ask({"user_id": "user-00001", "k": 100_000})
    assert (answer.status, answer.kind) == (422, PROBLEM)
    assert (answer.body["field"], answer.body["value"], answer.body["limit"]) == ("k", 100_000, 100)


def test_a_published_bundle_goes_live(graph: Graph) -> None:
    before = graph.registry.current()
    version = publish_bundle(graph.registry.path, graph.prepared, seed=2)
    assert version != before
    _wait_until(lambda: graph.live_version() == version)
    _check_same_as_offline(graph, version)


def test_too_many_requests_are_refused_and_none_hangs(graph: Graph) -> None:
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(graph.ask, [{"user_id": "user-00001", "num_candidates": 2000}] * 400))
    count = Counter(answer.status for answer in answers)
    assert set(count) == {200, 503}
    refused = next(answer for answer in answers if answer.status == 503)
    assert (refused.kind, refused.retry_after) == (PROBLEM, "1")
    assert refused.body["type"] == "urn:ray-recsys:problem:overloaded"
    assert graph.ask({"user_id": "user-00001"}).status == 200


@pytest.mark.parametrize("graph", ["apart"], indirect=True)
def test_killed_stages_are_replaced_and_nobody_sees_a_failure(graph: Graph) -> None:
    killed = _replicas("recall", "rerank")
    assert len(killed) == 2
    _kill(killed)
    answer = graph.ask({"user_id": "user-00001"})
    assert answer.status == 200 or (answer.status, answer.kind, answer.retry_after) == (503, PROBLEM, "1")
    _wait_until(lambda: graph.ask({"user_id": "user-00001"}).status == 200)
    _check_same_as_offline(graph, graph.registry.current())


@pytest.mark.parametrize("graph", ["fused"], indirect=True)
def test_a_killed_ingress_is_replaced(graph: Graph) -> None:
    (killed,) = _replicas("ingress")
    _kill([killed])
    _wait_until(lambda: [replica for replica in _replicas("ingress") if replica != killed] != [])
    _wait_until(lambda: _answers(graph))
    _check_same_as_offline(graph, graph.registry.current())


def _answers(graph: Graph) -> bool:
    try:
        return graph.ask({"user_id": "user-00001"}).status == 200
    except http.client.RemoteDisconnected:  # the proxy learns of the death from the requests that it loses
        return False


def _replicas(*deployments: str) -> list[dict[str, str]]:
    import ray

    actors: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [actor for actor in actors if any(f"#{deployment}#" in actor["name"] for deployment in deployments)]


def _kill(replicas: list[dict[str, str]]) -> None:
    import ray

    for replica in replicas:
        ray.kill(ray.get_actor(**replica))


def _check_same_as_offline(graph: Graph, version: str) -> None:
    recommender = Recommender(graph.registry.open(version))
    bundle = recommender.bundle
    for user_idx in range(50):
        answer = graph.ask({"user_id": bundle.users.id_of(user_idx)}).body
        offline = recommender.recommend(Query(user_idx=user_idx))
        assert answer["bundle"] == version
        shown = [item.item_id for item in bundle.catalogue.describe(offline.item_idx)]
        assert [item["item_id"] for item in answer["items"]] == shown
        assert set(answer["timings_ms"]) == {"recall", "rerank", "total"}


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
