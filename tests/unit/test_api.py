"""One answer is made by one bundle, and a refusal names the right field."""

from collections.abc import Iterator
from typing import Any

import pytest

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.serving.routes import Api
from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    home = tmp_path_factory.mktemp("api")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    return local_api(home / "registry")


@pytest.fixture
def client(api: Api) -> Iterator[AppClient]:
    client = AppClient(api)
    yield client
    client.close()


class CountedLive:
    """A live bundle that counts how often it is looked at: a swap may come between any two looks."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self.num_looks = 0

    @property
    def bundle(self) -> Bundle:
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
        ("GET", "/v1/bundle"),
        ("GET", "/healthz"),
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


def test_a_parameter_called_as_a_place_is_named(client: AppClient) -> None:
    answer = client.request("GET", f"/v1/items?query={'x' * 201}")
    assert (answer.status_code, answer.json()["field"], answer.json()["limit"]) == (422, "query", 200)


@pytest.mark.parametrize("key", ["query", "path"])
def test_a_key_called_as_a_place_is_named(client: AppClient, key: str) -> None:
    answer = client.request("POST", "/v1/recommend", json={key: 1})
    assert (answer.status_code, answer.json()["field"]) == (422, key)


def test_a_member_of_a_list_is_named(client: AppClient) -> None:
    answer = client.request("POST", "/v1/recommend", json={"history": ["item-0001", None]})
    assert (answer.status_code, answer.json()["field"]) == (422, "history.1")
