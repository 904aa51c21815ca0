import json
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.config import Recipe, ServeRecipe
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.errors import ClusterError, RegistryError
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.usefixtures("ray_session")]


def _ask(url: str, body: Any = None) -> tuple[int, str, Any]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as response:
            return response.status, response.headers.get_content_type(), json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get_content_type(), json.load(error)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("fused", [True, False])
def test_the_graph_answers_as_the_recommender_and_swaps_versions(tmp_path: Path, fused: bool) -> None:
    from ray_recsys.distributed.serving.local import serve

    prepared = make_prepared_set(tmp_path / "prepared")
    registry = Registry(tmp_path / "registry")
    first = publish_bundle(registry.path, prepared, seed=1)
    with serve(registry.path, Recipe(serve=ServeRecipe(port=0, fused=fused))) as address:
        _check_same_as_offline(address, registry, first)
        status, kind, problem = _ask(f"{address}/v1/recommend", {"user_id": "user-00001", "k": 100_000})
        assert (status, kind) == (422, "application/problem+json")
        assert (problem["field"], problem["value"], problem["limit"]) == ("k", 100_000, 100)
        assert _ask(f"{address}/v1/recommend", {"history": ["item-0003"], "k": 3})[2]["source"] == "fold-in"
        second = publish_bundle(registry.path, prepared, seed=2)
        deadline_s = time.monotonic() + 30
        while _ask(f"{address}/healthz")[2]["bundle"] != second:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        _check_same_as_offline(address, registry, second)


def _check_same_as_offline(address: str, registry: Registry, version: str) -> None:
    recommender = Recommender(registry.open(version))
    bundle = recommender.bundle
    for user_idx in range(50):
        answer = _ask(f"{address}/v1/recommend", {"user_id": bundle.users.id_of(user_idx)})[2]
        offline = recommender.recommend(Query(user_idx=user_idx))
        assert answer["bundle"] == version
        shown = [item.item_id for item in bundle.catalogue.describe(offline.item_idx)]
        assert [item["item_id"] for item in answer["items"]] == shown
        assert set(answer["timings_ms"]) == {"recall", "rerank", "total"}


@pytest.mark.usefixtures("ray_session")
def test_what_cannot_be_served_is_refused_at_once(tmp_path: Path) -> None:
    from ray_recsys.distributed.serving.local import serve

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
