"""Blocks of lines: what a line is, and of which type, does not depend on the lines beside it."""

from typing import Any

import pyarrow as pa
import pytest

from ray_recsys.core.preparing.log_files import Format
from ray_recsys.core.preparing.log_text import TextBlock, TextLayout, parse_block

NAMES = ("user_id", "item_id", "rating")


def parse(lines: list[str], format_: Format, separator: str = ",") -> TextBlock:
    layout = TextLayout(format_, NAMES, has_header=False, separator=separator, encoding="utf8")
    return parse_block("".join(f"{line}\n" for line in lines).encode(), layout, NAMES, is_first=True)


def parse_values(values: list[str], *, malformed: bool) -> pa.ChunkedArray:
    lines = [f'{{"user_id": {value}, "item_id": 1, "rating": 1}}' for value in values]
    block = parse(lines + ["{"] * malformed, "jsonl")
    assert len(block.malformed) == malformed
    return block.table["user_id"]


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (["1", "null", "3"], pa.int64(), [1, None, 3]),
        (["1", "2.5", "null"], pa.float64(), [1.0, 2.5, None]),
        (["1", "2.0"], pa.float64(), [1.0, 2.0]),
        (["9007199254740993", "9007199254740992"], pa.int64(), [2**53 + 1, 2**53]),
        (["9007199254740993", "9007199254740992", "0.5"], pa.string(), [str(2**53 + 1), str(2**53), "0.5"]),
        (["18446744073709551617", "1"], pa.string(), [str(2**64 + 1), "1"]),
        (['"a"', "null"], pa.string(), ["a", None]),
    ],
)
@pytest.mark.parametrize("malformed", [False, True])
def test_a_malformed_json_line_changes_no_type(
    values: list[str], dtype: pa.DataType, expected: list[Any], malformed: bool
) -> None:
    column = parse_values(values, malformed=malformed)
    assert column.type == dtype
    assert column.to_pylist() == expected


@pytest.mark.parametrize(("format_", "separator"), [("csv", ","), ("tsv", "\t"), ("movielens", "::")])
@pytest.mark.parametrize("beside", ["a b c", "", "short", "one two"])
def test_a_line_of_separators_is_a_row_whatever_is_beside_it(format_: Format, separator: str, beside: str) -> None:
    lines = [separator * 2, beside.replace(" ", separator), separator * 2, "  "]
    block = parse(lines, format_, separator)
    rows = block.table.to_pylist()
    assert rows.count(dict.fromkeys(NAMES)) == 2
    assert len(rows) + len(block.malformed) == (3 if beside == "" else 4)
