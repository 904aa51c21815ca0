"""Whatever is sent, the API answers JSON below 500, and an error says what is wrong."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_recsys.config import ServeRecipe
from tests.app_client import AppClient, local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

LIMITS = ServeRecipe(max_k=20, num_candidates=20, max_candidates=30, max_history=5)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppClient]:
    home = tmp_path_factory.mktemp("fuzz")
    publish_bundle(home / "registry", make_prepared_set(home / "prepared"))
    client = AppClient(local_api(home / "registry", LIMITS))
    yield client
    client.close()


def check(answer: httpx.Response) -> None:
    assert answer.status_code < 500, answer.text
    body = answer.json()
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json"
        assert body["status"] == answer.status_code
        assert body["title"]
        assert body["detail"]
        assert "Traceback" not in answer.text


users = st.sampled_from(["user-00000", "user-00059", "nobody"])
items = st.sampled_from(["item-0000", "item-0039", "nothing"])
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
counts = st.integers(-1, 40)
plausible = st.fixed_dictionaries(
    {},
    optional={
        "user_id": users | scalars,
        "history": st.lists(items, max_size=6) | st.lists(scalars, max_size=3),
        "k": counts | scalars,
        "num_candidates": counts | scalars,
        "exclude_seen": st.booleans() | scalars,
        "exclude_items": st.lists(items | scalars, max_size=45),
        "explain": st.booleans() | scalars,
        "string_ids": st.booleans() | scalars,
    },
)


def test_any_json(client: AppClient) -> None:
    statuses: Counter[int] = Counter()

    @settings(max_examples=300)
    @given(body=plausible | anything)
    def ask(body: Any) -> None:
        # json.dumps writes NaN and Infinity, which are not JSON: they must be refused
        answer = client.request(
            "POST", "/v1/recommend", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )
        check(answer)
        statuses[answer.status_code] += 1
        if answer.status_code == 200:
            found = [item["item_id"] for item in answer.json()["items"]]
            assert len(found) == len(set(found)) <= body.get("k", 10)
            assert not set(found) & {item for item in body.get("exclude_items", []) if isinstance(item, str)}

    ask()
    assert {200, 422} <= statuses.keys()


@settings(max_examples=100)
@given(content=st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_any_bytes(client: AppClient, content: bytes) -> None:
    check(client.request("POST", "/v1/recommend", content=content))


@pytest.mark.parametrize(
    ("path", "parameter"),
    [
        ("/v1/recommend/{}", "k"),
        ("/v1/similar/{}", "k"),
        ("/v1/users/{}/seen", "limit"),
        ("/v1/items?query={}", "limit"),
    ],
)
@settings(max_examples=60)
@given(text=users | items | st.text(min_size=1, max_size=8), number=counts | scalars)
def test_any_path_and_query(client: AppClient, path: str, parameter: str, text: str, number: Any) -> None:
    if text.strip(".") == "" and "?" not in path:  # a client folds these away
        return
    url = path.format(quote(text, safe=""))
    check(client.request("GET", f"{url}{'&' if '?' in url else '?'}{parameter}={quote(str(number), safe='')}"))


@pytest.mark.parametrize("body", ["[" * 100_000, '{"history": ' + "[" * 5_000, '{"k": ' + "9" * 5_000 + "}"])
def test_deep_and_long_json(client: AppClient, body: str) -> None:
    check(client.request("POST", "/v1/recommend", content=body))


def test_body_without_end(client: AppClient) -> None:
    answer = client.request("POST", "/v1/recommend", content=b" " * 10_000_000)
    check(answer)
    assert answer.status_code == 413


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_and_paths(client: AppClient, method: str) -> None:
    check(client.request(method, "/v1/recommend"))
    check(client.request("GET", "/v1/absent"))
