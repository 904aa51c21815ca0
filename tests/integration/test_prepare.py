"""`prepare` on Ray: the same bytes from any files and blocks, and nothing left behind by a failure."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.errors import DataError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

EXECUTOR = RayExecutor("prepare", ClusterRecipe())


def write_log(path: Path, *, num_files: int, row_group_size: int, seed: int) -> Path:
    """The same 30,000 rows in an order that the seed decides."""
    rng = np.random.default_rng(1)
    users, items = rng.zipf(1.3, 30_000) % 900, rng.zipf(1.2, 30_000) % 300
    times = rng.integers(1_600_000_000, 1_600_900_000, 30_000)
    order = np.random.default_rng(seed).permutation(30_000)
    path.mkdir()
    for number, rows in enumerate(np.array_split(order, num_files)):
        names = [f"user-{u}" for u in users[rows]]
        table = pa.table({"user_id": names, "item_id": items[rows], "timestamp": times[rows]})
        pq.write_table(table, path / f"{number}.parquet", row_group_size=row_group_size)
    return path


def file_bytes(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in [path / "items.parquet", *sorted((path / "users").iterdir())]}


@pytest.mark.parametrize("method", ["leave_one_out", "global_time"])
def test_bytes_do_not_depend_on_files_and_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr("ray_recsys.core.preparing.log_reader.BLOCK_ROWS", 2_000)  # chunks are planned on the driver
    rules = {"min_interactions_per_user": 3, "min_interactions_per_item": 3, "filter": "k_core"}
    recipe = parse_recipe({"prepare": rules, "split": {"method": method}}, "test")
    results = []
    for seed, (num_files, row_group_size) in enumerate([(1, 30_000), (7, 900)]):
        log = write_log(tmp_path / f"log-{seed}", num_files=num_files, row_group_size=row_group_size, seed=seed)
        prepare([str(log)], tmp_path / f"out-{seed}", recipe, EXECUTOR)
        PreparedSet.open(tmp_path / f"out-{seed}").verify()
        results.append(file_bytes(tmp_path / f"out-{seed}"))
    assert results[0] == results[1]


def test_an_error_inside_a_task_is_the_users_and_leaves_nothing(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", num_files=2, row_group_size=500, seed=0)
    pq.write_table(pa.table({"user_id": [0.5], "item_id": [1], "timestamp": [1]}), log / "9.parquet")
    with pytest.raises(DataError, match=r"9\.parquet, column 'user_id': ids of type double"):
        prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
