"""A first recipe for logs as they come: its guesses are right, commented, and prepare takes it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.cli import main
from ray_recsys.config import InputRecipe, Recipe
from ray_recsys.config.explain import explain
from ray_recsys.config.files import dump_full_recipe, load_recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.inspecting.log_guess import guess_columns
from ray_recsys.core.inspecting.log_sample import read_sample
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.core.workflows.starter_recipe import write_starter
from ray_recsys.errors import DataError, InputError, RecipeError

USERS = [user for user in range(40) for _ in range(6)]
ITEMS = [(user + 3 * step) % 25 for user in range(40) for step in range(6)]
TIMES_S = [1_700_000_000 + number for number in range(240)]


def _parquet(**columns: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / "log.parquet")
        return folder / "log.parquet"

    return write


def _text(name: str, header: str, row: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lines = [row.format(u=u, i=i, t=t, r=1 + t % 5) for u, i, t in zip(USERS, ITEMS, TIMES_S, strict=True)]
        (folder / name).write_text("\n".join([*([header] if header else []), *lines]) + "\n")
        return folder / name

    return write


MOVIELENS = {
    "user_column": "user_id",
    "item_column": "item_id",
    "timestamp_column": "timestamp",
    "rating_column": "rating",
}
LOGS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "shop": (
        _parquet(
            InvoiceNo=TIMES_S,
            StockCode=[f"s{item}" for item in ITEMS],
            Quantity=[1] * 240,
            InvoiceDate=pa.array(TIMES_S, pa.timestamp("s")),
            CustomerID=[float(user) for user in USERS],
            customer=[f"c{user}" for user in USERS],
        ),
        {
            "user_column": "customer",
            "item_column": "StockCode",
            "timestamp_column": "InvoiceDate",
            "rating_column": None,
        },
    ),
    "amazon": (
        _parquet(
            rating=[1.0 + number % 5 for number in range(240)],
            parent_asin=[f"b{item}" for item in ITEMS],
            user_id=[f"u{user}" for user in USERS],
            timestamp=[time * 1000 for time in TIMES_S],
            verified=[True] * 240,
        ),
        {
            "user_column": "user_id",
            "item_column": "parent_asin",
            "timestamp_column": "timestamp",
            "rating_column": "rating",
        },
    ),
    "u.data": (
        _text("u.data", "", "{u}\t{i}\t{r}\t{t}"),
        {
            "user_column": "user_id",
            "item_column": "item_id",
            "timestamp_column": "timestamp",
            "rating_column": "rating",
        },
    ),
    "ratings.dat": (
        _text("ratings.dat", "", "{u}::{i}::{r}::{t}"),
        {
            "user_column": "user_id",
            "item_column": "item_id",
            "timestamp_column": "timestamp",
            "rating_column": "rating",
        },
    ),
    "semicolons": (
        _text("log.csv", "userId;movieId;rating;timestamp", "{u};{i};{r};{t}"),
        {**MOVIELENS, "user_column": "userId", "item_column": "movieId"},
    ),
    "no times": (
        _text("log.csv", "visitor,sku", "v{u},k{i}"),
        {"user_column": "visitor", "item_column": "sku", "timestamp_column": None, "rating_column": None},
    ),
    "json": (
        _text("log.jsonl", "", '{{"viewer": "v{u}", "video": "w{i}", "at": "2024-01-01T00:00:{r}0Z", "session": {t}}}'),
        {"user_column": "viewer", "item_column": "video", "timestamp_column": "at", "rating_column": None},
    ),
    "nameless": (
        _parquet(a=[f"x{user}" for user in USERS], b=[f"y{item}" for item in ITEMS], c=[t * 10**9 for t in TIMES_S]),
        {"user_column": "a", "item_column": "b", "timestamp_column": "c", "timestamp_unit": "ns"},
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_columns_are_guessed_and_prepare_takes_the_recipe(name: str, tmp_path: Path) -> None:
    write, expected = LOGS[name]
    log = str(write(tmp_path))
    files = write_starter(tmp_path / "mine", [log], InputRecipe())
    recipe = load_recipe(files.recipe)
    assert {key: getattr(recipe.input, key) for key in expected} == expected
    recipe = load_recipe(files.recipe, ["prepare.num_partitions=1"])
    manifest = prepare([log], tmp_path / "prepared", recipe, SerialExecutor())
    assert (manifest.num_users, manifest.num_items) == (40, 25)
    assert sum(manifest.rows_dropped.values()) == 0


def test_every_guess_has_its_reason_and_alternatives(tmp_path: Path) -> None:
    log = _text("log.csv", "customer,session,product,when", "c{u},s{u},p{i},{t}")(tmp_path)
    text = write_starter(tmp_path, [str(log)], InputRecipe()).recipe.read_text()
    assert 'user_column = "customer"  # guess: its name; alternatives: session, product' in text
    assert 'timestamp_column = "when"  # guess: its values alone: no name says so' in text
    assert "#   product   string, 25 distinct, e.g." in text


def test_given_columns_are_not_guessed(tmp_path: Path) -> None:
    log = _text("log.csv", "customer,session,product,when", "c{u},s{u},p{i},{t}")(tmp_path)
    known = InputRecipe(user_column="session")
    files = write_starter(tmp_path / "mine", [str(log)], known)
    assert (files.user_column, files.item_column) == ("session", "product")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    log = str(LOGS["u.data"][0](tmp_path))
    before = write_starter(tmp_path / "mine", [log], InputRecipe()).recipe.read_bytes()
    with pytest.raises(InputError, match=r"recipe\.toml exists already"):
        write_starter(tmp_path / "mine", [log], InputRecipe())
    assert (tmp_path / "mine" / "recipe.toml").read_bytes() == before


def test_a_log_without_users_is_refused_with_what_it_has(tmp_path: Path) -> None:
    log = _parquet(price=[1.5], when=pa.array([1], pa.timestamp("s")))(tmp_path)
    with pytest.raises(DataError, match=r"looks like users \(columns: price, when\)"):
        guess_columns(read_sample([str(log)]))
    (tmp_path / "empty.csv").write_text("user,item\n")
    with pytest.raises(DataError, match="has no rows"):
        read_sample([str(tmp_path / "empty.csv")])


def test_init_show_and_check_from_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = str(LOGS["semicolons"][0](tmp_path))
    assert main(["init", str(tmp_path / "mine"), "--input", log]) == 0
    recipe = str(tmp_path / "mine" / "recipe.toml")
    capfd.readouterr()
    assert main(["recipe", "show", "--recipe", recipe, "--set", "train.epochs=3"]) == 0
    (tmp_path / "shown.toml").write_text(capfd.readouterr().out)
    assert load_recipe(tmp_path / "shown.toml") == load_recipe(recipe, ["train.epochs=3"])
    assert main(["recipe", "check", "--recipe", recipe, "--input", log, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["log_files"] == 1
    assert main(["recipe", "check", "--recipe", recipe, "--input", log, "--set", "input.item_column=film"]) == 2
    assert "has no column 'film'" in capfd.readouterr().err
    prepare([log], tmp_path / "prepared", load_recipe(recipe), SerialExecutor())
    changed = [
        "recipe",
        "check",
        "--recipe",
        recipe,
        "--data",
        str(tmp_path / "prepared"),
        "--set",
        "prepare.min_rating=3",
    ]
    assert main([*changed, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["data_differs"] == "prepare.min_rating: was None, now 3.0"


def test_a_full_recipe_reads_back_equal() -> None:
    recipe = load_recipe(overrides=["model.name=ease", "input.rating_column=stars", "split.test_fraction=0.2"])
    text = dump_full_recipe(recipe)
    assert "learning_rate" in text
    assert load_recipe(overrides=[]) != recipe
    (key,) = explain("split.test_fraction", recipe)
    assert (key.default, key.value, key.accepts) == (0.1, 0.2, "a finite number >= 0, < 1")
    assert key.description == "Share of interactions held out as test (not for leave_one_out and given)."


def test_every_key_of_every_section_is_explained() -> None:
    recipe = Recipe()
    keys = {facts.key for facts in explain("", recipe)}
    dumped = recipe.model_dump(mode="json")
    expected = {f"{section}.{key}" for section, values in dumped.items() if isinstance(values, dict) for key in values}
    assert keys == expected | {"seed"}
    assert {facts.key for facts in explain("feed", recipe)} == {key for key in keys if key.startswith("feed.")}
    ease = load_recipe(overrides=["model.name=ease"])
    assert {facts.key for facts in explain("model", ease)} == {f"model.{key}" for key in ease.model.model_dump()}
    with pytest.raises(RecipeError, match=r"did you mean train\.learning_rate"):
        explain("train.learningrate", recipe)
    with pytest.raises(RecipeError, match=r"did you mean train\.batch_size"):
        explain("batch_size", recipe)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("train.learning_rat", r"did you mean train\.learning_rate"),
        ("shrinkage", "lists all keys"),  # of another model than the recipe's
        ("test_fraction", r"did you mean .*split\.test_fraction"),
    ],
)
def test_a_key_that_no_recipe_has_is_refused(key: str, remedy: str) -> None:
    with pytest.raises(RecipeError, match=rf"'{re.escape(key)}' is no key of a recipe; .*{remedy}"):
        explain(key, Recipe())
