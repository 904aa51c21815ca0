"""Item codes are ranks of ids whatever the blocks, and the side file gives each item its own title."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import ItemsRecipe
from ray_recsys.core.preparing.ids import PackedIds, hash_ids
from ray_recsys.core.preparing.items import (
    find_items,
    join_side_items,
    read_side_items,
    vocabulary_order,
    write_items,
)
from ray_recsys.errors import DataError
from tests.executors import EXECUTOR

INTEGERS = st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=8), min_size=1, max_size=4)
TEXTS = st.lists(
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), unique=True, max_size=8),
    min_size=1,
    max_size=4,
)


def parts_of(block: list[Any], num_parts: int, is_text: bool) -> tuple[list[PackedIds], list[Any]]:
    """Returns the block's items by hash partition, and in their order."""
    hashes = hash_ids(pa.array(block, pa.string() if is_text else pa.int64())) % np.uint64(num_parts)
    parts = [[item for item, part in zip(block, hashes, strict=True) if part == number] for number in range(num_parts)]
    dtype = pa.string() if is_text else pa.int64()
    return [PackedIds.of(pa.array(part, dtype)) for part in parts], [item for part in parts for item in part]


@pytest.mark.parametrize("merged_at_once", [1, 5, 1_000])
@given(INTEGERS | TEXTS, st.integers(1, 3), st.integers(1, 3))
def test_a_code_is_the_rank_of_the_id(
    merged_at_once: int, blocks: list[list[Any]], num_parts: int, blocks_per_part: int
) -> None:
    ids = [external_id for block in blocks for external_id in block]
    is_text = any(isinstance(external_id, str) for external_id in ids)
    packed = [parts_of(block, num_parts, is_text) for block in blocks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_recsys.core.preparing.items._MERGED_AT_ONCE", merged_at_once)
        patch.setattr("ray_recsys.core.preparing.items.BLOCKS_PER_ITEM_PART", blocks_per_part)
        found = find_items([tuple(parts) for parts, _ in packed], "text" if is_text else "integer", EXECUTOR)
    expected = sorted(set(ids), key=str.encode) if is_text else sorted(set(ids))
    assert isinstance(found.ids, PackedIds)
    assert found.ids.array().to_pylist() == expected
    assert found.num_items == len(expected)
    for codes, (_, ordered) in zip(found.codes, packed, strict=True):
        assert isinstance(codes, np.ndarray)
        assert codes.tolist() == [expected.index(external_id) for external_id in ordered]


def test_integers_written_as_text_in_one_block_and_as_integers_in_another_are_the_same_items() -> None:
    blocks = [(PackedIds.of(pa.array([10, 9])),), (PackedIds.of(pa.array(["9", "11"])),)]
    integers, texts = (find_items(blocks, kind, EXECUTOR) for kind in ("integer", "text"))
    assert isinstance(integers.ids, PackedIds)
    assert isinstance(texts.ids, PackedIds)
    assert integers.ids.array().to_pylist() == [9, 10, 11]
    assert texts.ids.array().to_pylist() == ["10", "11", "9"]
    assert np.array(texts.codes[1]).tolist() == [2, 1]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_vocabulary_is_in_order_of_count_then_id(counts: list[int]) -> None:
    expected = sorted((i for i, count in enumerate(counts) if count), key=lambda i: (-counts[i], i))
    assert vocabulary_order(np.array(counts, np.int64)).tolist() == expected


class TestSideFile:
    def read(self, path: Path, text: str, **recipe: Any) -> pa.Table:
        path.write_text(text, encoding="utf8")
        return read_side_items(str(path), ItemsRecipe(**recipe))

    def test_titles_go_to_their_items(self, tmp_path: Path) -> None:
        side = self.read(tmp_path / "i.csv", "item_id,title,genre\n7,Seven,a\n10,Ten,\n", category_column="genre")
        columns, num_missing = join_side_items(pa.array([10, 8, 7]), side)
        assert {name: column.to_pylist() for name, column in columns.items()} == {
            "title": ["Ten", None, "Seven"],
            "category": [None, None, "a"],
        }
        assert num_missing == 1
        write_items(tmp_path / "items.parquet", pa.array([10, 8, 7]), np.array([3, 2, 1]), columns)
        table = pq.read_table(tmp_path / "items.parquet")
        assert table.column_names == ["item_idx", "item_id", "count", "title", "category"]
        assert table["item_idx"].to_pylist() == [0, 1, 2]

    def test_ids_of_parquet_match_whatever_their_type(self, tmp_path: Path) -> None:
        for ids in (pa.array([1.0, 2.0]), pa.array([1, 2], pa.int16()), pa.array(["1", "2"]).dictionary_encode()):
            pq.write_table(pa.table({"item_id": ids, "title": ["a", "b"]}), tmp_path / "i.parquet")
            side = read_side_items(str(tmp_path / "i.parquet"), ItemsRecipe())
            assert join_side_items(pa.array([2, 1]), side)[0]["title"].to_pylist() == ["b", "a"]

    def test_no_title_column(self, tmp_path: Path) -> None:
        side = self.read(tmp_path / "i.csv", "item_id\n7\n", title_column=None)
        assert join_side_items(pa.array(["7", "8"]), side) == ({}, 1)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("item_id,title\n,a\n", r"i\.csv: 1 rows have no 'item_id'; give every item its id"),
            (
                "item_id,title\n1,a\n1,b\n2,c\n2,d\n",
                r"i\.csv: 2 ids occur more than once, e\.g\. '1', '2'; keep one row",
            ),
            ("item_id,name\n1,a\n", r"i\.csv has no column 'title' \(columns found: item_id, name\); name the file's"),
            ("item_id,title\n1,a,b\n", r"i\.csv: 1 malformed rows, e\.g\. '1,a,b'"),
            ("", r"i\.csv has no column 'item_id'"),
        ],
    )
    def test_what_is_wrong_with_it(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            self.read(tmp_path / "i.csv", text)

    def test_a_column_that_is_not_text(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"item_id": [1], "title": [[1]]}), tmp_path / "i.parquet")
        with pytest.raises(DataError, match=r"a column of the side file has type list.*; convert it to text"):
            read_side_items(str(tmp_path / "i.parquet"), ItemsRecipe())
