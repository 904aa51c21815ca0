"""Files of a model: any split of the users' rows reads as another, and what is damaged or unknown is named."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.core.arrays import Float32s
from ray_recsys.core.evaluation.ranking import check_finite
from ray_recsys.core.models.files import (
    ARRAYS,
    HEADER,
    read_model_arrays,
    read_model_header,
    save_model_files,
    save_model_part,
)
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.models.user_parts import read_user_rows, write_user_part
from ray_recsys.errors import IntegrityError, SchemaVersionError, StageError

NUM_USERS = 9
ROWS: Float32s = np.arange(NUM_USERS * 3, dtype=np.float32).reshape(NUM_USERS, 3)
COUNTS = np.arange(NUM_USERS, dtype=np.int64) ** 2
CUTS = st.lists(st.integers(0, NUM_USERS), max_size=4).map(lambda cuts: sorted({0, *cuts, NUM_USERS}))


def write_parts(directory: Path, cuts: list[int]) -> None:
    for begin, end in pairwise(cuts):
        write_user_part(directory, {"rows": ROWS[begin:end], "counts": COUNTS[begin:end]}, begin)


@given(cuts=CUTS, users=st.tuples(st.integers(0, NUM_USERS), st.integers(0, NUM_USERS)).map(sorted))
def test_rows_written_by_some_workers_are_read_by_any_others(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], users: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("parts")
    write_parts(directory, cuts)
    read = read_user_rows(directory, range(*users))
    assert np.array_equal(read["rows"], ROWS[slice(*users)])
    assert np.array_equal(read["counts"], COUNTS[slice(*users)])
    assert (read["rows"].dtype.name, read["counts"].dtype.name) == ("float32", "int64")
    assert np.array_equal(read_user_rows(directory)["rows"], ROWS)


def test_a_worker_without_users_writes_no_file(tmp_path: Path) -> None:
    write_user_part(tmp_path, {"rows": ROWS[:0]}, 4)
    assert list(tmp_path.iterdir()) == []
    assert read_user_rows(tmp_path) == {}


def test_a_missing_part_is_counted(tmp_path: Path) -> None:
    write_parts(tmp_path, [0, 4, 6, NUM_USERS])
    (tmp_path / "users-000000000004.safetensors").unlink()
    with pytest.raises(IntegrityError, match="has the rows of 7 of users 0 to 9"):
        read_user_rows(tmp_path)
    with pytest.raises(IntegrityError, match="has the rows of 2 of users 3 to 7"):
        read_user_rows(tmp_path, range(3, 7))
    assert np.array_equal(read_user_rows(tmp_path, range(6, 8))["rows"], ROWS[6:8])


def test_a_truncated_part_is_refused(tmp_path: Path) -> None:
    write_parts(tmp_path, [0, NUM_USERS])
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(IntegrityError, match="rows of users cannot be read"):
        read_user_rows(tmp_path)


def test_the_worker_of_the_first_user_writes_what_all_share(tmp_path: Path) -> None:
    arrays = {"user": ROWS, "item": np.ones((2, 3), np.float32)}
    for begin, end in ((0, 5), (5, NUM_USERS)):
        part = {**arrays, "user": ROWS[begin:end]}
        header = {"name": "mf", "num_users": end - begin}
        save_model_part(tmp_path, header, part, user_arrays=["user"], users=range(begin, end), num_users=NUM_USERS)
    assert read_model_header(tmp_path) == {"name": "mf", "num_users": NUM_USERS}
    read = read_model_arrays(tmp_path)
    assert np.array_equal(read["user"], ROWS)
    assert np.array_equal(read["item"], arrays["item"])


def _no_header(directory: Path) -> None:
    (directory / HEADER).unlink()


def _no_json(directory: Path) -> None:
    (directory / HEADER).write_text("{")


def _no_name(directory: Path) -> None:
    (directory / HEADER).write_text("[]")


def _no_arrays(directory: Path) -> None:
    (directory / ARRAYS).unlink()


def _cut_arrays(directory: Path) -> None:
    (directory / ARRAYS).write_bytes((directory / ARRAYS).read_bytes()[:-4])


def _other_arrays(directory: Path) -> None:
    save_model_files(directory, json.loads((directory / HEADER).read_text()), {"nothing": np.zeros(3)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_header, r"model\.json cannot be read: .*No such file"),
        (_no_json, r"model\.json cannot be read"),
        (_no_name, r"model\.json does not name a model"),
        (_no_arrays, r"model\.safetensors cannot be read"),
        (_cut_arrays, r"model\.safetensors cannot be read"),
        (_other_arrays, r"model\.safetensors does not belong to model\.json"),
    ],
)
def test_a_damaged_model_is_refused_by_file(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    save_model_files(tmp_path, {"name": "item_knn", "num_items": 3}, {"one": np.zeros(2)})
    damage(tmp_path)
    with pytest.raises(IntegrityError, match=message):
        load_model(tmp_path)


def test_a_model_of_another_version_is_named(tmp_path: Path) -> None:
    save_model_files(tmp_path, {"name": "bert4rec"}, {"one": np.zeros(2)})
    with pytest.raises(SchemaVersionError, match="holds a 'bert4rec' model; this ray_recsys has ease, gmf"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_names_its_user(value: float) -> None:
    scores, users = np.zeros((3, 4), np.float32), np.array([7, 5, 9])
    check_finite(scores, users)
    scores[1, 2] = value
    with pytest.raises(
        StageError, match=rf"score is {value} for an item of user index 5: .*lower train\.learning_rate"
    ):
        check_finite(scores, users)
