"""The whole path in a bucket: a log in, recommendations out, and nothing that two nodes share but the bucket."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.cli import main
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.storage.files import list_folder, list_tree, open_input, upload
from ray_recsys.storage.location import Location
from tests.app_client import AppClient, local_api
from tests.factories import write_log

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

Command = Callable[..., dict[str, Any]]
NUM_USERS = 60  # of the log


@pytest.fixture
def home(bucket: Location, s3_server: str) -> Location:
    """The bucket, with the server's address in the URI: Ray's processes were started before there was a server."""
    host = s3_server.removeprefix("http://")
    return Location.of(f"s3://{bucket.path}?endpoint_override={host}&scheme=http")


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; returns the JSON object that it prints."""

    def run(*arguments: object, status: int = 0) -> dict[str, Any]:
        capfd.readouterr()
        code, printed = main([*map(str, arguments), "--json"]), capfd.readouterr()
        assert code == status, printed.err + printed.out
        answer: dict[str, Any] = json.loads(printed.out)
        return answer

    return run


def test_the_whole_path_in_a_bucket(home: Location, tmp_path: Path, command: Command) -> None:
    write_log(tmp_path / "log.parquet")
    upload(tmp_path / "log.parquet", home / "logs" / "log.parquet")
    data, registry, search = home / "prepared", home / "registry", home / "search"
    quick = ("--set", "train.epochs=2", "--set", "cluster.num_workers=2")

    assert command("prepare", "--input", home / "logs", "--output", data)["num_users"] == NUM_USERS
    assert command("prepare", "--input", home / "logs", "--output", data)["num_users"] == NUM_USERS  # up to date
    command("audit", "--data", data)
    assert command("describe", "--data", data, "--html", home / "page.html")["num_users"] == NUM_USERS
    small = ("--set", "model.name=item_knn", "--set", "tune.num_trials=1", "--set", "tune.max_concurrent_trials=1")
    assert command("tune", "--data", data, "--output", search, *small)["num_trials"] == 1
    assert set(list_folder(search)) - {"report.html"} == {"best_recipe.toml", "trials.csv"}
    command("train", "--data", data, "--output", home / "knn", "--recipe", search / "best_recipe.toml")
    trained = command("train", "--data", data, "--output", home / "run", *quick)
    assert trained["run"] == str(home / "run")
    assert command("train", "--data", data, "--output", home / "run", "--resume", *quick)["metrics"]
    ranks = home / "ranks.parquet"
    models = ("--model", home / "run", "--model", home / "knn")
    evaluation = command("evaluate", *models, "--data", data, "--output", ranks)
    assert set(evaluation["models"]) == {"NeuMF", "ItemKNN", "Popularity", "Random"}
    with open_input(ranks) as file:
        assert len(set(pq.read_table(file)["user_id"].to_pylist())) == NUM_USERS

    published = command("publish", "--run", home / "run", "--data", data, "--registry", registry)
    assert published["path"] == str(registry / published["version"])
    again = command("publish", "--run", home / "knn", "--data", data, "--registry", registry, "--force")
    assert again["parent"] == published["version"]
    assert command("registry", "rollback", "--registry", registry)["version"] == published["version"]
    assert {v["state"] for v in command("registry", "list", "--registry", registry)["versions"]} == {"live", ""}

    command("recommend", "--bundle", registry, "--output", home / "lists", "--k", 5)
    assert list_tree(home / "lists") == ["_SUCCESS", "_job.json", "part-00000.parquet"]
    with open_input(home / "lists" / "part-00000.parquet") as file:
        lists = pq.read_table(file).to_pandas()
    pq.write_table(pa.table({"user_id": ["user-00"], "item_id": ["item-00"]}), tmp_path / "pairs.parquet")
    upload(tmp_path / "pairs.parquet", home / "pairs.parquet")
    scored = command("score", "--bundle", registry, "--input", home / "pairs.parquet", "--output", home / "s.csv")
    assert (scored["num_rows"], scored["num_unknown"]) == (1, 0)

    client = AppClient(local_api(registry))
    answer = client.request("GET", "/v1/recommend/user-07?k=5").json()
    client.close()
    assert answer["bundle"] == published["version"]
    expected = lists[lists["user_id"] == "user-07"]["item_id"].tolist()
    assert [item["item_id"] for item in answer["items"]] == expected
    assert Registry(registry).prune(1) == ([], [])
