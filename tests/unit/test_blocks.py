"""Blocks hold every good row under its user's bucket, and a log's summary is that of all its parts."""

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import InputRecipe
from ray_recsys.core.preparing.blocks import Block, LogSummary, pack_block
from ray_recsys.core.preparing.checking import DropLog, check_rows
from ray_recsys.core.preparing.ids import NUM_BUCKETS, PackedIds, bucket_of, hash_ids, partition_bounds

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
    monkeypatch.setattr("ray_recsys.core.preparing.ids._HASHED_AT_ONCE", 7)
    assert (hash_ids(ids) == whole).all()
    assert len(set(whole.tolist())) == 1_000


@pytest.mark.parametrize("num_partitions", [1, 3, 7, NUM_BUCKETS])
def test_partitions_cover_all_buckets_evenly(num_partitions: int) -> None:
    bounds = partition_bounds(num_partitions)
    sizes = np.diff(bounds)
    assert (bounds[0], bounds[-1], len(sizes)) == (0, NUM_BUCKETS, num_partitions)
    assert sizes.max() - sizes.min() <= 1
    assert bucket_of(np.array([0, 2**64 - 1], np.uint64)).tolist() == [0, NUM_BUCKETS - 1]


@given(TEXTS | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.data())
def test_packed_ids_and_their_cuts_are_the_ids(ids: list[Any], data: st.DataObject) -> None:
    array = pa.array(ids, pa.int64() if ids and isinstance(ids[0], int) else pa.string())
    start = data.draw(st.integers(0, len(ids)))
    stop = data.draw(st.integers(start, len(ids)))
    assert PackedIds.of(array).array().equals(array)
    assert PackedIds.of(array.slice(start)).cut(0, stop - start).array().equals(array[start:stop])
    assert len(PackedIds.of(array).cut(start, stop)) == stop - start


def rows_of(block: Block, items: list[int]) -> list[tuple[str, int, int]]:
    users, columns = block.users.array().to_pylist(), block.columns
    assert (columns["rating"] == columns["time_us"] / 10**6).all()
    triples = zip(columns["user"].tolist(), columns["item"].tolist(), columns["time_us"].tolist(), strict=True)
    return [(users[user], items[item], time // 10**6) for user, item, time in triples]


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 5), st.integers(0, 99)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.lists(st.integers(0, NUM_BUCKETS), max_size=4),
)
def test_a_block_holds_each_row_under_its_bucket(
    rows: list[tuple[int, int, int]], num_item_parts: int, inner_bounds: list[int]
) -> None:
    users, items, times = (list(column) for column in zip(*rows, strict=True))
    ratings = [float(time) for time in times]
    table = pa.table({"user_id": [f"u{u}" for u in users], "item_id": items, "timestamp": times, "rating": ratings})
    checked = check_rows(table, RECIPE, is_text_file=False, source="test")
    block, *parts = pack_block(checked, None, num_item_parts)
    for number, ids in enumerate(parts):
        assert (hash_ids(ids.array()) % np.uint64(num_item_parts) == number).all()
    item_ids = [item for ids in parts for item in ids.array().to_pylist()]
    expected = Counter((f"u{user}", item, time) for user, item, time in rows)
    assert Counter(rows_of(block, item_ids)) == expected
    codes = np.array([sorted(set(items)).index(item) for item in item_ids], np.int32)
    found: Counter[tuple[str, int, int]] = Counter()
    for first, end in pairwise([0, *sorted(inner_bounds), NUM_BUCKETS]):
        cut = block.cut(first, end, codes)
        assert all(first <= bucket < end for bucket in bucket_of(hash_ids(cut.users.array())))
        middle = (first + end) // 2
        halves = [cut.cut(first, middle, None), cut.cut(middle, end, None)]
        for half in halves:
            found += Counter(rows_of(half, sorted(set(items))))
    assert found == expected


def part(**changes: Any) -> LogSummary:
    drops = DropLog()
    drops.add("bad", changes.pop("bad", 0), [{"line": "x"}])
    return LogSummary(drops=drops, **changes)


def test_a_summary_is_that_of_all_parts_in_their_order() -> None:
    parts = [
        part(rows_in=5, rows_kept=4, num_bytes=7, time_unit_us=1_000, time_range_us=(3_000, 9_000), bad=1),
        part(rows_in=2, bad=2),
        part(rows_in=3, rows_kept=3, num_bytes=8, user_kind="text", time_range_us=(1_000_000, 2_000_000)),
    ]
    merged = LogSummary.merged(parts)
    assert (merged.rows_in, merged.rows_kept, merged.num_bytes) == (10, 7, 15)
    assert (merged.user_kind, merged.item_kind) == ("text", "integer")
    assert (merged.time_unit_us, merged.time_range_us) == (1_000, (3_000, 2_000_000))
    assert merged.drops.counts == {"bad": 3}
    assert merged.drops.examples == {"bad": [{"line": "x"}, {"line": "x"}]}
    assert parts[0].drops.counts == {"bad": 1}, "parts stay as they are"
    nested = LogSummary.merged([LogSummary.merged(parts[:2]), parts[2]])
    assert (nested.num_bytes, nested.drops.examples) == (merged.num_bytes, merged.drops.examples)


def test_nothing_read() -> None:
    nothing = LogSummary.merged([])
    assert (nothing.rows_in, nothing.num_bytes, nothing.time_unit_us, nothing.time_range_us) == (0, 0, 1_000_000, None)


@pytest.mark.parametrize(
    ("times_ms", "unit_us"), [([1_000, 5_000], 1_000_000), ([1_000, 5_001], 1_000), ([], 1_000_000)]
)
def test_the_time_unit_of_a_block_is_the_coarsest_that_divides_its_times(times_ms: list[int], unit_us: int) -> None:
    table = pa.table({"user_id": [1] * len(times_ms), "item_id": [1] * len(times_ms), "timestamp": times_ms})
    recipe = InputRecipe(timestamp_unit="ms")
    checked = check_rows(table, recipe, is_text_file=False, source="test") if times_ms else None
    summary = LogSummary.of_block(checked, 0) if checked else LogSummary()
    assert summary.time_unit_us == unit_us
    assert summary.rows_in == len(times_ms)
