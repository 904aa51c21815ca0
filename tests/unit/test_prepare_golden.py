"""What `prepare` makes of a small log never changes: digests of its values, made before rows travelled through Ray."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.counter_random import splitmix64
from ray_recsys.core.preparing.pipeline import prepare
from tests.executors import EXECUTOR

NUM_ROWS = 6_000
RULES = {"min_interactions_per_user": 4, "min_interactions_per_item": 5, "num_partitions": 5}
RECIPES: dict[str, dict[str, Any]] = {
    "once": {"prepare": RULES},
    "k_core": {"prepare": {**RULES, "filter": "k_core", "deduplicate": "count"}},
    "by_time": {"prepare": {**RULES, "filter": "k_core"}, "split": {"method": "global_time"}},
    "random": {"prepare": {"deduplicate": "highest_rating", "min_rating": 2}, "split": {"method": "random_per_user"}},
}

DIGESTS = {
    "once": "3cbcdc8c6a45abc2",
    "k_core": "8095ee5d31e625e4",
    "by_time": "7568e7d8f8bb9293",
    "random": "591dbf834a4c0b89",
}


def write_log(path: Path) -> Path:
    """Skewed users (text) and items (integers), ties in time, repeated pairs and a few bad rows, in two files."""
    draws = [splitmix64(np.arange(NUM_ROWS, dtype=np.uint64) + np.uint64(column << 32)) for column in range(5)]
    unit = [(draw >> np.uint64(11)).astype(np.float64) / 2**53 for draw in draws]
    users = [f"user-{number}" if number else None for number in (unit[0] ** 2 * 500).astype(int).tolist()]
    table = pa.table(
        {
            "user_id": users,
            "item_id": (unit[1] ** 3 * 400).astype(np.int64),
            "timestamp": 1_700_000_000 + (unit[2] * 5_000).astype(np.int64),
            "rating": np.where(unit[4] < 0.01, np.nan, np.floor(unit[3] * 5) + 1),
        }
    )
    path.mkdir()
    pq.write_table(table.slice(0, 4_100), path / "0.parquet", row_group_size=900)
    pq.write_table(table.slice(4_100), path / "1.parquet", row_group_size=1_100)
    return path


def digest(prepared: Path) -> str:
    """Returns a digest of all values, names and types in a prepared set, which no version of Parquet changes."""
    sha = hashlib.sha256()
    for path in sorted(path for path in prepared.rglob("*") if path.is_file() and path.name != "manifest.json"):
        sha.update(str(path.relative_to(prepared)).encode())
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            sha.update(f"{table.schema.names} {table.schema.types}".encode())
            sha.update(json.dumps(table.to_pydict()).encode())
        else:
            sha.update(path.read_bytes().replace(str(prepared.parent).encode(), b""))
    return sha.hexdigest()


@pytest.mark.parametrize("block_rows", [1_000, 1 << 20])
@pytest.mark.parametrize("name", list(RECIPES))
def test_the_values_are_those_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block_rows: int
) -> None:
    monkeypatch.setattr("ray_recsys.core.preparing.log_reader.BLOCK_ROWS", block_rows)
    recipe = parse_recipe({"input": {"rating_column": "rating"}, **RECIPES[name]}, "test")
    prepare([str(write_log(tmp_path / "log"))], tmp_path / "out", recipe, EXECUTOR)
    assert digest(tmp_path / "out")[:16] == DIGESTS[name]
