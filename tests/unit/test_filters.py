"""Allow-lists, categories, diversity, batches, scores and title search: each as brute force has it."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.core.models.contract import DenseFactors
from ray_recsys.core.models.fold_in import ExampleDrawer
from ray_recsys.core.models.neighbours import NONE, Neighbours
from ray_recsys.core.models.popularity import Popularity
from ray_recsys.core.recommending.candidate_index import CandidateIndex, RankedCatalogue
from ray_recsys.core.recommending.catalogue import Catalogue, write_catalogue
from ray_recsys.core.recommending.diversity import diversify
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.title_index import TitleIndex
from ray_recsys.serving.api import Api
from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Api:
    home = tmp_path_factory.mktemp("filters")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared", num_items=120))
    return local_api(home / "registry")


@pytest.fixture
def client(api: Api) -> Iterator[AppClient]:
    client = AppClient(api)
    yield client
    client.close()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), num_candidates=st.integers(1, 30), ranked=st.booleans())
def test_recall_within_an_allow_list_is_exact(seed: int, num_candidates: int, ranked: bool) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-1, 2, (40, 3)).astype(np.float32)
    user = rng.integers(-1, 2, 3).astype(np.float32)
    scores = vectors @ user
    excluded, allowed = np.flatnonzero(rng.random(40) < 0.3), np.flatnonzero(rng.random(40) < 0.4).astype(np.int32)
    eligible = set(allowed.tolist()) - set(excluded.tolist())
    order = [i for i in np.lexsort((np.arange(40), -scores)) if i in eligible]
    if ranked:
        model = Popularity(1, scores)
        recall, factors = RankedCatalogue(model), model.users(np.array([0]))
        found = recall.search(factors, num_candidates, excluded, allowed)
    else:
        index = CandidateIndex(vectors)
        found = index.search(DenseFactors(user[None]), num_candidates, excluded, allowed)
    assert found.tolist() == sorted(order[:num_candidates])


def test_k_items_of_an_allow_list_come_back_though_they_are_the_last(api: Api, client: AppClient) -> None:
    bundle = api.live.bundle
    recommender = Recommender(bundle)
    everything = recommender.recommend(Query(user_idx=7, k=120, num_candidates=120)).item_idx
    worst = everything[-12:]
    ids = [bundle.catalogue.vocabulary.id_of(int(one)) for one in worst]
    body = {"user_id": bundle.users.id_of(7), "k": 10, "num_candidates": 10, "allowed_items": [*ids, "nothing"]}
    answer = client.request("POST", "/v1/recommend", json=body).json()
    assert len(answer["items"]) == 10
    assert {item["item_id"] for item in answer["items"]} <= set(ids)
    nobody = client.request("POST", "/v1/recommend", json={"allowed_items": ids, "k": 3}).json()
    popular = sorted(worst.tolist())[:3]
    assert [item["item_id"] for item in nobody["items"]] == [bundle.catalogue.vocabulary.id_of(one) for one in popular]
    assert client.request("POST", "/v1/recommend", json={"allowed_items": []}).json()["items"] == []


def test_a_category_is_the_whole_text_or_one_of_its_parts(tmp_path: "pytest.TempPathFactory") -> None:
    table = pa.table(
        {
            "item_id": ["a", "b", "c", "d"],
            "count": [4, 3, 2, 1],
            "category": ["Action|Comedy", None, "Comedy", "Drama"],
        }
    )
    write_catalogue(tmp_path, table)  # type: ignore[arg-type]
    catalogue = Catalogue.open(tmp_path)  # type: ignore[arg-type]
    found = {name: catalogue.in_category(name).tolist() for name in ("Comedy", "Action", "Action|Comedy", "Drama", "X")}
    assert found == {"Comedy": [0, 2], "Action": [0], "Action|Comedy": [0], "Drama": [3], "X": []}


def test_diversity_picks_the_less_similar_and_zero_changes_nothing(api: Api, client: AppClient) -> None:
    neighbours = Neighbours(
        np.array([[1, NONE], [0, NONE], [NONE, NONE]], np.int32), np.array([[0.9, 0], [0.9, 0], [0, 0]], np.float32)
    )
    items, scores = np.array([0, 1, 2], np.int32), np.array([3.0, 2.9, 2.0], np.float32)
    assert diversify(items, scores, neighbours, 3, 0.6).tolist() == [0, 2, 1]  # 0.36 - 0.54 < 0 - 0
    assert diversify(items, scores, neighbours, 2, 0.05).tolist() == [0, 1]
    body = {"user_id": api.live.bundle.users.id_of(3), "k": 20}
    plain, zero, half = (
        client.request("POST", "/v1/recommend", json={**body, **more}).json()["items"]
        for more in ({}, {"diversity": 0.0}, {"diversity": 0.7})
    )
    assert plain == zero
    assert plain != half
    assert len(half) == 20
    assert half[0] == plain[0]


def test_a_batch_answers_as_single_requests_do(api: Api, client: AppClient) -> None:
    users = [*api.live.bundle.users.ids_of(np.arange(40)).to_pylist(), "nobody"]
    batch = client.request("POST", "/v1/recommend/batch", json={"user_ids": users, "k": 5}).json()
    assert [one["user_id"] for one in batch["results"]] == users
    for one in batch["results"]:
        single = client.request("POST", "/v1/recommend", json={"user_id": one["user_id"], "k": 5}).json()
        assert one["source"] == single["source"]
        assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in single["items"]]
        scores = [[item["score"] for item in answer["items"]] for answer in (one, single)]
        assert scores[0] == pytest.approx(scores[1], rel=1e-4, abs=1e-5)
    refused = client.request("POST", "/v1/recommend/batch", json={"user_ids": ["a"] * 257})
    assert (refused.status_code, refused.json()["field"]) == (422, "user_ids")


def test_scores_are_the_models_and_an_unknown_item_has_none(api: Api, client: AppClient) -> None:
    bundle = api.live.bundle
    model = bundle.load_model()
    items = [bundle.catalogue.vocabulary.id_of(one) for one in (100, 3, 57)]
    body = {"user_id": bundle.users.id_of(9), "item_ids": [*items, "nothing", items[0]]}
    answer = client.request("POST", "/v1/score", json=body).json()
    expected = model.scores(model.users(np.array([9])), np.array([[100, 3, 57]]))[0]
    scores = [one["score"] for one in answer["scores"]]
    np.testing.assert_allclose(scores[:3], expected, rtol=1e-5)
    assert (scores[3], scores[4], answer["source"]) == (None, scores[0], "two-stage")


def test_an_item_is_described(api: Api, client: AppClient) -> None:
    item_id = api.live.bundle.catalogue.vocabulary.id_of(0)
    answer = client.request("GET", f"/v1/items/{item_id}").json()
    assert (answer["item"]["item_id"], answer["num_users"]) == (item_id, int(api.live.bundle.catalogue.counts[0]))
    assert client.request("GET", "/v1/items/nothing").status_code == 404


@settings(max_examples=200, deadline=None)
@given(
    titles=st.lists(st.none() | st.text("aAbÄß é", max_size=8), max_size=12),
    text=st.text("aAbÄß é", max_size=4),
    limit=st.integers(1, 5),
)
def test_title_search_finds_what_a_scan_finds(titles: list[str | None], text: str, limit: int) -> None:
    expected = [row for row, title in enumerate(titles) if text.lower() in (title or "").lower()][:limit]
    assert TitleIndex.build(pa.array(titles, pa.string())).search(text, limit).tolist() == expected


def test_no_item_of_a_long_history_is_a_negative() -> None:
    history = np.arange(900, dtype=np.int32)
    examples = ExampleDrawer(3000).examples(history)
    positives, negatives = examples.items[examples.labels == 1], examples.items[examples.labels == 0]
    assert positives.tolist() == list(range(400, 900))
    assert len(negatives) == 1500
    assert negatives.min() >= 900
