"""Staging blocks hold every good row under its user's bucket, and a log's summary is that of all its parts."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_recsys.config import InputRecipe
from ray_recsys.core.files import read_arrow
from ray_recsys.core.preparing.checking import DropLog, check_rows
from ray_recsys.core.preparing.staging import (
    NUM_BUCKETS,
    StagedLog,
    bucket_of,
    hash_ids,
    partition_bounds,
    stage_block,
)

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), max_size=20)
RECIPE = InputRecipe(rating_column="rating")


def splitmix64(value: int) -> int:
    """Steele, Lea, Flood 2014, in Python's integers."""
    z = (value + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def hash_text(text: str) -> int:
    data = text.encode()
    terms = ((byte + 1) * pow(0x9E3779B97F4A7C15, position, 2**64) for position, byte in enumerate(data))
    return splitmix64((sum(terms) + len(data)) % 2**64)


@given(TEXTS)
def test_hashes_are_those_of_the_formula(texts: list[str]) -> None:
    assert hash_ids(pa.array(texts, pa.string())).tolist() == [hash_text(text) for text in texts]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_an_integer_hashes_like_its_text(numbers: list[int]) -> None:
    assert hash_ids(pa.array(numbers, pa.int64())).tolist() == [hash_text(str(number)) for number in numbers]


def test_hashes_of_slices_and_of_many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = pa.array([f"user-{number}" for number in range(1_000)])
    whole = hash_ids(ids)
    assert (hash_ids(ids.slice(100, 50)) == whole[100:150]).all()
    monkeypatch.setattr("ray_recsys.core.preparing.staging._HASHED_AT_ONCE", 7)
    assert (hash_ids(ids) == whole).all()
    assert len(set(whole.tolist())) == 1_000


@pytest.mark.parametrize("num_partitions", [1, 3, 7, NUM_BUCKETS])
def test_partitions_cover_all_buckets_evenly(num_partitions: int) -> None:
    bounds = partition_bounds(num_partitions)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(sizes)) == (0, NUM_BUCKETS, num_partitions)
    assert sizes.max() - sizes.min() <= 1
    assert bucket_of(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0, NUM_BUCKETS - 1]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=40))
def test_a_block_holds_each_row_under_its_bucket(tmp_path: Path, rows: list[tuple[int, int, int]]) -> None:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    table = pa.table(
        {
            "user_id": [f"u{user}" for user in users],
            "item_id": items,
            "timestamp": times,
            "rating": [float(time) for time in times],
        }
    )
    block = tmp_path / "block"
    stage_block(check_rows(table, RECIPE, is_text_file=False, source="test"), block)
    staged, user_ids, item_ids = (read_arrow(block / f"{name}.arrow") for name in ("rows", "users", "items"))
    row_starts, user_starts = np.load(block / "buckets.npy")
    bucket_of_user = bucket_of(hash_ids(user_ids["id"].combine_chunks()))
    assert (np.repeat(np.arange(NUM_BUCKETS), np.diff(user_starts)) == bucket_of_user).all()
    bucket_of_row = np.repeat(np.arange(NUM_BUCKETS), np.diff(row_starts))
    assert (bucket_of_row == bucket_of_user[staged["user"].to_numpy()]).all()
    found = []
    for row in staged.to_pylist():
        user, item = user_ids["id"][row["user"]].as_py(), item_ids["id"][row["item"]].as_py()
        assert row["rating"] == row["time_us"] / 10**6
        found.append((int(user[1:]), item, row["time_us"] // 10**6))
    assert Counter(found) == Counter(rows)


def part(**changes: Any) -> StagedLog:
    drops = DropLog()
    drops.add("bad", changes.pop("bad", 0), [{"line": "x"}])
    return StagedLog(drops=drops, **changes)


def test_a_summary_is_that_of_all_parts_in_their_order() -> None:
    parts = [
        part(rows_in=5, rows_kept=4, blocks=("a",), time_unit_us=1_000, time_range_us=(3_000, 9_000), bad=1),
        part(rows_in=2, bad=2),
        part(rows_in=3, rows_kept=3, blocks=("b", "c"), user_kind="text", time_range_us=(1_000_000, 2_000_000)),
    ]
    merged = StagedLog.merged(parts)
    assert (merged.rows_in, merged.rows_kept, merged.blocks) == (10, 7, ("a", "b", "c"))
    assert (merged.user_kind, merged.item_kind) == ("text", "integer")
    assert (merged.time_unit_us, merged.time_range_us) == (1_000, (3_000, 2_000_000))
    assert merged.drops.counts == {"bad": 3}
    assert merged.drops.examples == {"bad": [{"line": "x"}, {"line": "x"}]}
    assert parts[0].drops.counts == {"bad": 1}, "parts stay as they are"
    nested = StagedLog.merged([StagedLog.merged(parts[:2]), parts[2]])
    assert (nested.blocks, nested.drops.counts) == (merged.blocks, merged.drops.counts)


def test_nothing_staged() -> None:
    nothing = StagedLog.merged([])
    assert (nothing.rows_in, nothing.blocks, nothing.time_unit_us, nothing.time_range_us) == (0, (), 1_000_000, None)


@pytest.mark.parametrize(
    ("times_ms", "unit_us"), [([1_000, 5_000], 1_000_000), ([1_000, 5_001], 1_000), ([], 1_000_000)]
)
def test_the_time_unit_of_a_block_is_the_coarsest_that_divides_its_times(times_ms: list[int], unit_us: int) -> None:
    table = pa.table({"user_id": [1] * len(times_ms), "item_id": [1] * len(times_ms), "timestamp": times_ms})
    recipe = InputRecipe(timestamp_unit="ms")
    checked = check_rows(table, recipe, is_text_file=False, source="test") if times_ms else None
    staged = StagedLog.of_block("block", checked) if checked else StagedLog()
    assert staged.time_unit_us == unit_us
    assert staged.rows_in == len(times_ms)
