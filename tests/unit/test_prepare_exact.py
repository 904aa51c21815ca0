"""`prepare` against a plain reference, and its bytes under shuffles, files and blocks."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.histories import Interactions
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.errors import DataError
from tests.executors import EXECUTOR
from tests.prepare_reference import Kept, Row, reference_prepare

ROWS = st.lists(
    st.tuples(
        st.sampled_from([f"u{i}" for i in range(8)]),
        st.sampled_from([f"i{i}" for i in range(9)]),
        st.integers(1_000, 1_040),
        st.sampled_from([1.0, 2.5, 4.0, 5.0]),
    ),
    min_size=1,
    max_size=120,
)
RECIPES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 3),
        "input": st.just({"rating_column": "rating"}),
        "prepare": st.fixed_dictionaries(
            {
                "deduplicate": st.sampled_from(["first", "last", "highest_rating", "count"]),
                "min_rating": st.sampled_from(["none", 2.0]),
                "min_interactions_per_user": st.integers(1, 3),
                "min_interactions_per_item": st.integers(1, 3),
                "filter": st.sampled_from(["once", "k_core"]),
                "num_partitions": st.integers(1, 5),
            }
        ),
        "split": st.fixed_dictionaries(
            {
                "method": st.sampled_from(["leave_one_out", "global_time", "random_per_user"]),
                "validation_fraction": st.sampled_from([0.0, 0.1, 0.3]),
                "test_fraction": st.sampled_from([0.1, 0.25]),
            }
        ),
    }
)


def write_log(path: Path, rows: list[Row], num_files: int, row_group_size: int) -> Path:
    path.mkdir()
    for number, part in enumerate(np.array_split(np.arange(len(rows)), num_files)):
        users, items, times, ratings = zip(*(rows[i] for i in part), strict=True) if len(part) else ((), (), (), ())
        table = pa.table(
            {
                "rating": pa.array(ratings, pa.float64()),
                "timestamp": pa.array(times, pa.int64()),
                "item_id": pa.array(items, pa.string()),
                "user_id": pa.array(users, pa.string()),
            }
        )
        pq.write_table(table, path / f"{number}.parquet", row_group_size=row_group_size)
    return path


def read_back(prepared: PreparedSet) -> tuple[list[tuple[str, int]], dict[str, list[list[Kept]]]]:
    table = prepared.read_items()
    items = list(zip(table["item_id"].to_pylist(), table["count"].to_pylist(), strict=True))
    users: dict[str, list[list[Kept]]] = {}
    next_user_idx = 0
    for partition in range(len(prepared.manifest.partitions)):
        histories = prepared.read_partition(partition)
        user_ids = prepared.read_user_ids(partition).to_pylist()
        assert user_ids == sorted(user_ids)
        assert histories.first_user_idx == next_user_idx or not user_ids
        next_user_idx += len(user_ids)
        parts = [_kept(part, items) for part in (histories.training, histories.validation, histories.test)]
        users.update({user: list(of_user) for user, *of_user in zip(user_ids, *parts, strict=True)})
    return items, users


def _kept(part: Interactions, items: list[tuple[str, int]]) -> list[list[Kept]]:
    assert part.timestamp_s is not None
    assert part.rating is not None
    repetition = np.ones(len(part.item_idx), np.int32) if part.repetition is None else part.repetition
    columns = (
        [items[i][0] for i in part.item_idx],
        part.timestamp_s.tolist(),
        part.rating.tolist(),
        repetition.tolist(),
    )
    flat = list(zip(*columns, strict=True))
    return [flat[start:stop] for start, stop in zip(part.offsets[:-1], part.offsets[1:], strict=True)]


def file_bytes(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in [path / "items.parquet", *sorted((path / "users").iterdir())]}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, RECIPES)
def test_equals_the_reference(rows: list[Row], data: dict[str, Any]) -> None:
    recipe = parse_recipe(data, "test")
    expected = reference_prepare(rows, recipe)
    with tempfile.TemporaryDirectory() as folder:
        log = write_log(Path(folder) / "log", rows, num_files=2, row_group_size=7)
        if len(expected.users) < 2 or len(expected.items) < 2:
            with pytest.raises(DataError, match="left of"):
                prepare([str(log)], Path(folder) / "out", recipe, EXECUTOR)
            assert not (Path(folder) / "out").exists()
            return
        manifest = prepare([str(log)], Path(folder) / "out", recipe, EXECUTOR)
        items, users = read_back(PreparedSet.open(Path(folder) / "out"))
    assert items == expected.items
    assert users == expected.users
    assert manifest.rows_dropped == dict(expected.dropped)
    assert manifest.rows_in == len(rows) == manifest.rows_kept + sum(manifest.rows_dropped.values())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS.filter(lambda rows: len(rows) > 60), RECIPES, st.integers(1, 5), st.integers(1, 50), st.randoms())
def test_bytes_do_not_depend_on_order_files_or_blocks(
    rows: list[Row], data: dict[str, Any], num_files: int, row_group_size: int, random: Any
) -> None:
    recipe = parse_recipe(data, "test")
    shuffled = random.sample(rows, len(rows))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        a, b = Path(folder) / "a", Path(folder) / "b"
        try:
            prepare([str(write_log(a.with_suffix(".log"), rows, 1, 1000))], a, recipe, EXECUTOR)
        except DataError:
            return
        patch.setattr("ray_recsys.core.preparing.log_reader.BLOCK_ROWS", row_group_size)
        patch.setattr("ray_recsys.core.preparing.items._MERGED_AT_ONCE", 4)
        prepare([str(write_log(b.with_suffix(".log"), shuffled, num_files, row_group_size))], b, recipe, EXECUTOR)
        assert file_bytes(a) == file_bytes(b)


@pytest.mark.parametrize("method", ["leave_one_out", "global_time", "random_per_user"])
def test_every_split_keeps_its_promises(tmp_path: Path, method: str) -> None:
    rng = np.random.default_rng(3)
    rows = [
        (f"u{u}", f"i{i}", int(t), 3.0)
        for u, i, t in zip(
            rng.integers(0, 200, 4000), rng.integers(0, 50, 4000), rng.integers(0, 10**6, 4000), strict=True
        )
    ]
    recipe = parse_recipe({"input": {"rating_column": "rating"}, "split": {"method": method}}, "test")
    prepare([str(write_log(tmp_path / "log", rows, 3, 500))], tmp_path / "out", recipe, EXECUTOR)
    prepared = PreparedSet.open(tmp_path / "out")
    prepared.verify()
    _, users = read_back(prepared)
    assert 0.05 < prepared.manifest.num_test / prepared.manifest.rows_kept < 0.15
    for training, validation, test in users.values():
        assert training
        items = [kept[0] for kept in training + validation + test]
        assert len(items) == len(set(items))
        if method == "leave_one_out" and test:
            assert max(training + validation, key=lambda k: k[1])[1] <= test[0][1]
        if method == "global_time":
            split = prepared.manifest.split
            assert all(kept[1] < split["validation_from_s"] for kept in training)
            assert all(split["validation_from_s"] <= kept[1] < split["test_from_s"] for kept in validation)
            assert all(split["test_from_s"] <= kept[1] for kept in test)


def test_random_split_changes_with_the_seed_alone(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{(u * 7 + j) % 40}", j, 1.0) for u in range(30) for j in range(20)]
    log = write_log(tmp_path / "log", rows, 1, 1000)
    outputs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        recipe = Recipe.model_validate(
            {"seed": seed, "split": {"method": "random_per_user"}, "input": {"rating_column": "rating"}}
        )
        prepare([str(log)], tmp_path / name, recipe, EXECUTOR)
        outputs[name] = file_bytes(tmp_path / name)
    assert outputs["a"] == outputs["b"]
    assert outputs["a"] != outputs["c"]
