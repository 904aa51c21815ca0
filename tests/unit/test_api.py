"""What the routes answer: by one bundle, with explanations, ratings and exact ids; an error names its field."""

import dataclasses
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from ray_recsys.core.models.neighbours import NONE, Neighbours
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.serving.api import Api
from ray_recsys.serving.live import LiveBundle
from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

FIRST_ID = 2**60  # every id is above 2^53


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    home = tmp_path_factory.mktemp("api")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    return local_api(home / "registry")


@pytest.fixture(scope="module")
def rated_api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    """Over a bundle with 64-bit integer ids, ratings, and more items than each has neighbours."""
    home = tmp_path_factory.mktemp("rated")
    prepared = make_prepared_set(home / "prepared", num_items=300, first_id=FIRST_ID, has_ratings=True)
    publish_bundle(home / "registry", prepared)
    return local_api(home / "registry")


@pytest.fixture
def client(api: Api) -> Iterator[AppClient]:
    client = AppClient(api)
    yield client
    client.close()


@pytest.fixture
def rated_client(rated_api: Api) -> Iterator[AppClient]:
    client = AppClient(rated_api)
    yield client
    client.close()


class CountedLive(LiveBundle):
    """A live bundle that counts how often it is looked at: a swap may come between any two looks."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.failure, self.arms, self.arm_failure = None, {}, None
        self.num_looks = 0

    @property
    def bundle(self) -> Bundle:  # type: ignore[override]
        self.num_looks += 1
        return self._bundle


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/recommend"),
        ("GET", "/v1/recommend/user-00001"),
        ("GET", "/v1/similar/item-0001"),
        ("GET", "/v1/users/user-00001/seen"),
        ("GET", "/v1/users"),
        ("GET", "/v1/items?query=title"),
        ("GET", "/v1/items/item-0001"),
        ("GET", "/v1/bundle"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    ],
)
def test_one_answer_is_made_by_one_bundle(
    api: Api, client: AppClient, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    live = CountedLive(api.live.bundle)
    monkeypatch.setattr(api, "live", live)
    body: dict[str, Any] = {"json": {"user_id": "user-00001"}} if method == "POST" else {}
    assert client.request(method, path, **body).status_code == 200
    assert live.num_looks == 1


def test_a_parameter_with_the_name_of_a_location_is_named(client: AppClient) -> None:
    answer = client.request("GET", f"/v1/items?query={'x' * 201}")
    assert (answer.status_code, answer.json()["field"], answer.json()["limit"]) == (422, "query", 200)


@pytest.mark.parametrize("key", ["query", "path"])
def test_a_key_with_the_name_of_a_location_is_named(client: AppClient, key: str) -> None:
    answer = client.request("POST", "/v1/recommend", json={key: 1})
    assert (answer.status_code, answer.json()["field"]) == (422, key)


def test_a_member_of_a_list_is_named(client: AppClient) -> None:
    answer = client.request("POST", "/v1/recommend", json={"history": ["item-0001", None]})
    assert (answer.status_code, answer.json()["field"]) == (422, "history.1")


def _because(bundle: Bundle, item_id: int, seen: list[int]) -> list[int | str]:
    """The brute-force explanation: the user's items among the neighbours, nearest first."""
    item_idx = bundle.catalogue.vocabulary.find(item_id)
    assert item_idx is not None
    near = [int(one) for one in bundle.neighbours.item_idx[item_idx] if int(one) in seen]
    return [bundle.catalogue.vocabulary.id_of(one) for one in near[:3]]


@pytest.mark.parametrize(
    "body",
    [
        {"user_id": FIRST_ID + 3},
        {"user_id": FIRST_ID + 3, "history": [FIRST_ID + 39, FIRST_ID + 38]},
        {"history": [FIRST_ID + number for number in range(9)]},
        {"history": [FIRST_ID + number for number in range(9)], "exclude_seen": False},
        {},
    ],
)
def test_an_explanation_is_the_nearest_items_of_the_user(
    rated_api: Api, rated_client: AppClient, body: dict[str, Any]
) -> None:
    bundle = rated_api.live.bundle
    answer = rated_client.request("POST", "/v1/recommend", json={**body, "k": 100, "explain": True}).json()
    find = bundle.catalogue.vocabulary.find
    seen = [index for one in body.get("history", []) if (index := find(one)) is not None]
    if "user_id" in body:
        seen += bundle.seen.of(bundle.users.find(body["user_id"]) or 0).tolist()
    for item in answer["items"]:
        assert [one["item_id"] for one in item["because"]] == _because(bundle, item["item_id"], seen)
    sizes = {len(item["because"]) for item in answer["items"]}
    assert sizes == ({0, 1, 2, 3} if body else {0})
    plain = rated_client.request("POST", "/v1/recommend", json={**body, "k": 100}).json()
    assert plain["items"] == [{k: v for k, v in item.items() if k != "because"} for item in answer["items"]]


def test_seen_items_carry_their_ratings_latest_first(rated_api: Api, rated_client: AppClient) -> None:
    bundle = rated_api.live.bundle
    answer = rated_client.request("GET", f"/v1/users/{FIRST_ID + 4}/seen?limit=3").json()["items"]
    ratings = bundle.seen.ratings_of(4)
    assert ratings is not None
    assert [item["rating"] for item in answer] == ratings[::-1][:3].tolist()
    latest = bundle.catalogue.describe(bundle.seen.of(4)[::-1][:3])
    assert [item["item_id"] for item in answer] == [item.item_id for item in latest]


def test_ratings_are_written_as_short_as_they_were_read(
    rated_api: Api, rated_client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = rated_api.live.bundle.seen
    tenths = np.full(len(seen.items), 0.1, np.float32)
    monkeypatch.setattr(type(seen), "ratings_of", lambda self, user: tenths[: len(self.of(user))])
    text = rated_client.request("GET", f"/v1/users/{FIRST_ID}/seen?limit=1").text
    assert '"rating":0.1}' in text


def test_seen_items_of_a_log_without_ratings_have_none(client: AppClient) -> None:
    answer = client.request("GET", "/v1/users/user-00004/seen").json()["items"]
    assert len(answer) >= 5
    assert all("rating" not in item for item in answer)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/recommend"),
        ("GET", f"/v1/recommend/{FIRST_ID + 1}"),
        ("GET", f"/v1/similar/{FIRST_ID + 1}"),
        ("GET", f"/v1/users/{FIRST_ID + 1}/seen"),
        ("GET", "/v1/users"),
        ("GET", "/v1/items"),
    ],
)
def test_ids_are_strings_on_request_and_otherwise_as_in_the_log(
    rated_client: AppClient, method: str, path: str
) -> None:
    def ask(string_ids: bool) -> tuple[Any, list[Any]]:
        body = {"user_id": str(FIRST_ID + 1), "k": 5, "explain": True}
        if method == "POST":
            answer = rated_client.request(method, path, json={**body, **({"string_ids": True} if string_ids else {})})
        else:
            answer = rated_client.request(method, f"{path}?string_ids=true" if string_ids else path)
        assert answer.status_code == 200
        return answer.json(), list(_ids_in(answer.json()))

    (as_logged, numbers), (as_text, texts) = ask(False), ask(True)
    assert len(numbers) >= 5
    assert all(isinstance(one, int) and one >= FIRST_ID for one in numbers)
    assert texts == [str(one) for one in numbers]
    assert as_logged.keys() == as_text.keys()


def _ids_in(body: Any) -> Iterator[Any]:
    if isinstance(body, list):
        for one in body:
            yield from _ids_in(one)
    elif isinstance(body, dict):
        yield from body.get("users", [])
        for key, value in body.items():
            if key == "item_id":
                yield value
            else:
                yield from _ids_in(value)


def test_a_string_id_finds_its_integer(rated_client: AppClient) -> None:
    exact, text = (
        rated_client.request("POST", "/v1/recommend", json={"user_id": user, "history": [item], "explain": True}).json()
        for user, item in ((FIRST_ID + 3, FIRST_ID + 5), (str(FIRST_ID + 3), str(FIRST_ID + 5)))
    )
    assert exact["num_unknown_history"] == 0
    assert exact["source"] == "fold-in"
    assert {**exact, "timings_ms": 0} == {**text, "timings_ms": 0}


def test_the_bundle_names_its_models(api: Api, client: AppClient) -> None:
    answer = client.request("GET", "/v1/bundle").json()
    assert (answer["model"], answer["model_label"], answer["recall_model_label"]) == ("neumf", "NeuMF", "NeuMF")
    assert answer["recipe"]["model"]["name"] == "neumf"
    assert answer["version"] == api.live.bundle.version
    assert (answer["num_users"], answer["num_items"]) == (60, 40)


def test_similar_items_end_where_an_item_has_no_more_neighbours(
    rated_api: Api, rated_client: AppClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    padded = Neighbours(rated_api.live.bundle.neighbours.item_idx.copy(), rated_api.live.bundle.neighbours.scores)
    padded.item_idx[:, 2:] = NONE
    bundle = dataclasses.replace(rated_api.live.bundle, neighbours=padded)
    monkeypatch.setattr(rated_api.live, "bundle", bundle)
    similar = rated_client.request("GET", f"/v1/similar/{FIRST_ID}?k=10").json()["items"]
    assert len(similar) == 2
    answer = rated_client.request("POST", "/v1/recommend", json={"user_id": FIRST_ID + 3, "k": 100, "explain": True})
    seen = bundle.seen.of(3).tolist()
    for item in answer.json()["items"]:
        assert [one["item_id"] for one in item["because"]] == _because(bundle, item["item_id"], seen)


def test_no_model_is_named_but_by_the_bundle(client: AppClient) -> None:
    description = client.request("GET", "/openapi.json").json()
    assert "RecommendResponse" in description["components"]["schemas"]
    texts = [json.dumps(description)]
    texts += [
        entry.read_text()
        for entry in files("ray_recsys.web").iterdir()
        if entry.name.endswith((".js", ".css", ".html"))
    ]
    assert len(texts) > 10
    assert not [text for text in texts if "neumf" in text.lower()]


def test_the_description_has_the_recipes_limits(api: Api, client: AppClient) -> None:
    schema = client.request("GET", "/openapi.json").json()["components"]["schemas"]["RecommendRequest"]
    assert schema["description"] == "Recommendation request. Unknown users without a history get popular items."
    assert schema["properties"]["k"]["maximum"] == api.limits.max_k
    assert schema["properties"]["history"]["maxItems"] == api.limits.max_history


def test_static_files_are_revalidated_by_etag(client: AppClient) -> None:
    first = client.request("GET", "/app.js")
    assert (first.status_code, first.headers["content-type"].split(";")[0]) == (200, "text/javascript")
    again = client.request("GET", "/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for path in ("/../pyproject.toml", "/__init__.py", "/%2e%2e/errors.py"):
        assert client.request("GET", path).status_code == 404
