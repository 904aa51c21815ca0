"""Stock lists: uploaded once, used by every replica, kept across versions and restarts."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending import stock_lists
from ray_recsys.core.recommending.stock_lists import StockLists
from ray_recsys.errors import RegistryError
from ray_recsys.serving import stock
from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lists")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    return home / "registry"


@pytest.fixture
def clients(registry: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[AppClient]]:
    """Two replicas of one service, which read the index at every request."""
    monkeypatch.setattr(stock, "POLL_S", 0.0)
    made = [AppClient(local_api(registry, ServeRecipe(max_list_items=30))) for _ in range(2)]
    yield made
    for client in made:
        client.close()
    for name in StockLists(registry).index():
        StockLists(registry).delete(name)


def _items(client: AppClient, **body: object) -> list[str]:
    answer = client.request("POST", "/v1/recommend", json={"k": 40, "exclude_seen": False, **body})
    assert answer.status_code == 200, answer.text
    return sorted(item["item_id"] for item in answer.json()["items"])


def test_a_list_filters_recall_in_every_replica_and_can_be_replaced(clients: list[AppClient], registry: Path) -> None:
    writer, reader = clients
    ids = [f"item-{number:04d}" for number in (3, 17, 31, 36)]
    put = writer.request("PUT", "/v1/lists/in-stock", json={"item_ids": [*ids, "nothing"]})
    assert (put.status_code, put.json()) == (200, {"name": "in-stock", "num_items": 5})
    for client in clients:
        for user in ({"user_id": "user-00003"}, {"history": [ids[0]]}, {}):
            assert _items(client, list="in-stock", **user) == ids
    assert _items(reader, list="in-stock", allowed_items=[ids[1], "item-0001"]) == [ids[1]]
    writer.request("PUT", "/v1/lists/in-stock", json={"item_ids": ids[:1]})
    assert _items(reader, list="in-stock", user_id="user-00003") == ids[:1]
    assert len(list((registry / "lists").glob("*.json"))) == 1
    assert reader.request("GET", "/v1/lists").json() == {"lists": [{"name": "in-stock", "num_items": 1}]}
    assert writer.request("DELETE", "/v1/lists/in-stock").status_code == 204
    for answer in (
        writer.request("DELETE", "/v1/lists/in-stock"),
        reader.request("POST", "/v1/recommend", json={"list": "in-stock"}),
    ):
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:ray-recsys:problem:unknown-id")


def test_a_list_that_is_too_long_or_badly_named_is_refused(clients: list[AppClient], registry: Path) -> None:
    (client, _) = clients
    long = client.request("PUT", "/v1/lists/a", json={"item_ids": list(range(31))})
    assert (long.status_code, long.json()["field"], long.json()["limit"]) == (422, "item_ids", 30)
    assert client.request("PUT", "/v1/lists/a%20b", json={"item_ids": []}).status_code == 422
    assert client.request("PUT", "/v1/lists/a", content=b"{").status_code == 400
    assert client.request("PUT", "/v1/lists/a", content=b" " * 1_100_000).status_code == 413
    assert StockLists(registry).index() == {}


def test_the_number_of_lists_is_bounded_and_a_lost_index_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock_lists, "MAX_LISTS", 2)
    lists = StockLists(tmp_path)
    for name in ("a", "b", "a"):
        lists.put(name, [1, "x"])
    with pytest.raises(RegistryError, match="more than 2"):
        lists.put("c", [])
    with pytest.raises(RegistryError, match="name"):
        lists.put("../c", [])
    assert lists.read("a", lists.index()["a"]) == [1, "x"]
    (tmp_path / "lists" / "INDEX").write_text("?")
    with pytest.raises(RegistryError, match="INDEX cannot be read"):
        lists.index()


def test_a_list_of_many_items_is_looked_up_once_per_version(registry: Path) -> None:
    api = local_api(registry)
    bundle = api.live.bundle
    api.stock.lists.put("all", bundle.catalogue.table["item_id"].to_pylist())
    client = AppClient(api)
    try:
        for _ in range(3):
            assert len(_items(client, list="all", user_id="user-00001")) == 40
    finally:
        client.close()
        api.stock.lists.delete("all")
    (kept,) = api.stock._kept.values()
    np.testing.assert_array_equal(kept, np.arange(40))
