"""Serving on a real Ray: the same answers as offline, new versions, killed replicas, overload."""

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray import serve as ray_serve

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serve.local import serve
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
class Service:
    """A running service and its registry."""

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
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp(request.param)
    prepared = make_prepared_set(home / "prepared")
    registry = Registry(home / "registry")
    publish_bundle(registry.path, prepared, seed=1)
    settings = ServeRecipe(port=0, fused=request.param == "fused", max_waiting=2)
    with serve(registry.path, settings) as address:
        yield Service(address, registry, prepared)


def test_an_empty_registry_and_a_taken_port_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError), serve(tmp_path / "empty", ServeRecipe()):
        pass
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=str(port)), serve(tmp_path / "registry", ServeRecipe(port=port)):
            pass


def test_a_serve_that_runs_already_is_left_alone(tmp_path: Path) -> None:
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"))
    ray_serve.start(proxy_location="Disabled")
    try:
        with pytest.raises(ClusterError, match="no application yet"), serve(tmp_path / "registry", ServeRecipe()):
            pass
        assert ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve") is not None
    finally:
        ray_serve.shutdown()


def test_http_answers_as_the_recommender_does(service: Service) -> None:
    _check_same_as_offline(service, service.registry.current())
    assert service.ask({"history": ["item-0003"], "k": 3}).body["source"] == "fold-in"
    recommender = Recommender(service.registry.open())
    item_idx = recommender.bundle.catalogue.vocabulary.find("item-0003")
    assert item_idx is not None
    history = np.array([item_idx], np.int32)
    for query, body in (
        (Query(user_idx=7, exclude_seen=False), {"exclude_seen": False}),
        (Query(user_idx=7, history=history), {"history": ["item-0003"]}),
    ):
        answer = service.ask({"user_id": recommender.bundle.users.id_of(7), **body}).body
        assert _ids(answer["items"]) == _offline(recommender, query) != _offline(recommender, Query(user_idx=7))


def test_similar_items_are_the_bundles_neighbours(service: Service) -> None:
    bundle = service.registry.open()
    for item_idx in range(5):
        item_id = bundle.catalogue.vocabulary.id_of(item_idx)
        answer = _fetch(urllib.request.Request(f"{service.address}/v1/similar/{item_id}?k=7")).body
        shown = bundle.catalogue.describe(bundle.neighbours.item_idx[item_idx, :7])
        assert _ids(answer["items"]) == [item.item_id for item in shown]
        assert [item["score"] for item in answer["items"]] == bundle.neighbours.scores[item_idx, :7].tolist()


def test_a_value_above_its_limit_is_a_problem(service: Service) -> None:
    answer = service.ask({"user_id": "user-00001", "k": 100_000})
    assert (answer.status, answer.kind) == (422, PROBLEM)
    assert (answer.body["field"], answer.body["value"], answer.body["limit"]) == ("k", 100_000, 500)


def test_a_published_bundle_goes_live(service: Service) -> None:
    before = service.registry.current()
    version = publish_bundle(service.registry.path, service.prepared, seed=2)
    assert version != before
    _wait_until(lambda: service.live_version() == version)
    _check_same_as_offline(service, version)


def test_an_answer_during_a_swap_is_of_the_one_version_that_it_names(service: Service) -> None:
    before = service.registry.current()
    swapped = threading.Event()

    def ask_on(user_idx: int) -> list[Answer]:
        answers = []
        while not swapped.is_set():
            answers.append(service.ask({"user_id": f"user-{user_idx:05d}"}))
        return answers

    with ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(ask_on, user_idx) for user_idx in (3, 4)]
        try:
            version = publish_bundle(service.registry.path, service.prepared, seed=3)
            _wait_until(lambda: service.live_version() == version)
            time.sleep(0.2)
        finally:
            swapped.set()
        answers = {user_idx: future.result() for user_idx, future in zip((3, 4), asked, strict=True)}
    recommenders = {name: Recommender(service.registry.open(name)) for name in (before, version)}
    for user_idx, of_user in answers.items():
        assert {answer.status for answer in of_user} == {200}
        assert {answer.body["bundle"] for answer in of_user} == {before, version}
        expected = {name: _offline(one, Query(user_idx=user_idx)) for name, one in recommenders.items()}
        assert expected[before] != expected[version]
        assert all(_ids(answer.body["items"]) == expected[answer.body["bundle"]] for answer in of_user)


def test_too_many_requests_are_refused_and_none_hangs(service: Service) -> None:
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(service.ask, [{"user_id": "user-00001", "num_candidates": 2000}] * 400))
    count = Counter(answer.status for answer in answers)
    assert set(count) == {200, 503}
    refused = next(answer for answer in answers if answer.status == 503)
    assert (refused.kind, refused.retry_after) == (PROBLEM, "1")
    assert refused.body["type"] == "urn:ray-recsys:problem:overloaded"
    assert service.ask({"user_id": "user-00001"}).status == 200


@pytest.mark.parametrize("service", ["apart"], indirect=True)
def test_killed_stages_are_replaced_and_meanwhile_answers_are_retryable_problems(service: Service) -> None:
    killed = _replicas("recall", "rerank")
    assert len(killed) == 2
    _kill(killed)
    answer = service.ask({"user_id": "user-00001"})
    assert answer.status == 200 or (answer.status, answer.kind, answer.retry_after) == (503, PROBLEM, "1")
    _wait_until(lambda: service.ask({"user_id": "user-00001"}).status == 200)
    _check_same_as_offline(service, service.registry.current())


@pytest.mark.parametrize("service", ["fused"], indirect=True)
def test_a_killed_ingress_is_replaced(service: Service) -> None:
    (killed,) = _replicas("ingress")
    _kill([killed])
    _wait_until(lambda: [replica for replica in _replicas("ingress") if replica != killed] != [])
    _wait_until(lambda: _answers(service))
    _check_same_as_offline(service, service.registry.current())


def _answers(service: Service) -> bool:
    try:
        return service.ask({"user_id": "user-00001"}).status == 200
    except http.client.RemoteDisconnected:  # the proxy notices the death by losing requests
        return False


def _replicas(*deployments: str) -> list[dict[str, str]]:
    actors: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [actor for actor in actors if any(f"#{deployment}#" in actor["name"] for deployment in deployments)]


def _kill(replicas: list[dict[str, str]]) -> None:
    for replica in replicas:
        ray.kill(ray.get_actor(**replica))


def _check_same_as_offline(service: Service, version: str) -> None:
    recommender = Recommender(service.registry.open(version))
    bundle = recommender.bundle
    for user_idx in range(50):
        answer = service.ask({"user_id": bundle.users.id_of(user_idx)}).body
        offline = _offline(recommender, Query(user_idx=user_idx))
        assert answer["bundle"] == version
        assert _ids(answer["items"]) == offline
        assert set(answer["timings_ms"]) == {"recall", "rerank", "total"}


def _ids(items: list[dict[str, Any]]) -> list[int | str]:
    return [item["item_id"] for item in items]


def _offline(recommender: Recommender, query: Query) -> list[int | str]:
    shown = recommender.bundle.catalogue.describe(recommender.recommend(query).item_idx)
    return [item.item_id for item in shown]


def _wait_until(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
