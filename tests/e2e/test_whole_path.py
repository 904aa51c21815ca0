"""From the raw log to HTTP through the command line's own functions, on the demo's data and with its recipe."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ray_recsys.cli import main
from ray_recsys.config.files import load_recipe
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serve.local import serve

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
NUM_COMPARED = 50


@contextmanager
def _json_of(capfd: pytest.CaptureFixture[str]) -> Iterator[dict[str, Any]]:
    """Collects the one JSON object that the commands of the block print."""
    result: dict[str, Any] = {}
    capfd.readouterr()
    yield result
    result.update(json.loads(capfd.readouterr().out))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def test_the_demo_goes_the_whole_way(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with _json_of(capfd) as result:
        assert main(["demo", "--once", "--json", "--directory", str(directory), "--port", "0"]) == 0
    titles = [movie["title"] for movie in result["recommended"]]
    assert len(set(titles)) == 10
    assert all(not title.isdigit() for title in titles)
    seen = {movie["item_id"] for movie in result["seen"]}
    assert len(seen) >= 19
    assert seen.isdisjoint(movie["item_id"] for movie in result["recommended"] + result["popular"])
    scores = [movie["score"] for movie in result["recommended"]]
    assert scores == sorted(scores, reverse=True)
    ndcg = {label: model["metrics"]["NDCG@10"] for label, model in result["evaluation"]["models"].items()}
    assert ndcg["NeuMF"] > 1.5 * ndcg["Popularity"]
    assert ndcg["Popularity"] > 3 * ndcg["Random"]
    assert set(result["stage_s"]) == {"prepare", "train", "compare", "evaluate", "publish", "serve"}


def test_what_was_prepared_passes_the_audit(directory: Path) -> None:
    assert main(["audit", "--data", str(directory / "prepared")]) == 0


def test_http_equals_recommend_id_for_id(directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundle = Registry(directory / "registry").open()
    output = tmp_path / "recommendations"
    with _json_of(capfd):
        assert main(["recommend", "--json", "--bundle", str(bundle.path), "--output", str(output), "--k", "10"]) == 0
    offline = _offline_lists(output)
    assert len(offline) == bundle.manifest.num_users
    with serve(directory / "registry", load_recipe(overrides=["serve.port=0"]).serve) as address:
        for user_id in sorted(offline)[:NUM_COMPARED]:
            answer = _ask(f"{address}/v1/recommend/{user_id}?k=10")
            assert [item["item_id"] for item in answer["items"]] == offline[user_id], f"user {user_id}"
            assert answer["bundle"] == bundle.version
            assert answer["source"] == "two-stage"


def _offline_lists(output: Path) -> dict[int, list[int]]:
    lists: dict[int, list[int]] = {}
    for row in pq.read_table(output).to_pylist():
        lists.setdefault(row["user_id"], []).append(row["item_id"])
    return lists


def _ask(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(url, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def test_scores_keep_rows_and_order(directory: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("user_id,item_id\n1,31\n999999,31\n2,10\n")
    output = tmp_path / "scores.parquet"
    bundle = Registry(directory / "registry").open()
    arguments = ["--bundle", str(bundle.path), "--input", str(pairs), "--output", str(output)]
    with _json_of(capfd) as result:
        assert main(["score", "--json", *arguments]) == 0
    rows = pq.read_table(output).to_pylist()
    assert [row["user_id"] for row in rows] == [1, 999999, 2]
    assert [row["score"] is None for row in rows] == [False, True, False]
    assert 1 in result.values()  # the pair with an unknown id is counted
