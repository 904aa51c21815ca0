"""Each row is good or has one reason, the first that applies; ids, numbers and rules against plain Python."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import DropRule, InputRecipe
from ray_recsys.core.preparing.checking import MAX_EXAMPLES, CheckedRows, DropLog, cast_ids, check_rows, merge_kinds
from ray_recsys.errors import DataError

TEXTS = st.sampled_from(["a", "b", "C1", "1", "007", "-5", "1.0"])
VALUES = st.sampled_from(["0", "1", "-2.5", "1e3", " 7 ", "x", "", "nan", "0x1"])
RULES = st.lists(
    st.sampled_from(
        [
            {"matches": "^C"},
            {"not_matches": "[0-9]"},
            {"at_most": 0.0},
            {"at_least": 1.0, "at_most": 7.0},
            {"matches": "1", "at_least": 1.0},
            {"is_null": True},
        ]
    ),
    max_size=3,
)
ROWS = st.lists(
    st.tuples(st.none() | TEXTS, st.none() | TEXTS, st.none() | VALUES, st.none() | VALUES), min_size=1, max_size=25
)


def number(text: str | None) -> float | None:
    """A number as the log's columns have it: plain decimal, with an exponent or not."""
    if text is None or not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text):
        return None
    return float(text)


def meets(value: str | None, rule: DropRule) -> bool:
    if rule.is_null or value is None:
        return rule.is_null and value is None
    if rule.matches is not None and not re.search(rule.matches, value):
        return False
    if rule.not_matches is not None and re.search(rule.not_matches, value):
        return False
    if rule.at_most is not None or rule.at_least is not None:
        numeric = number(value)
        if numeric is None:
            return False
        return (rule.at_least is None or numeric >= rule.at_least) and (rule.at_most is None or numeric <= rule.at_most)
    return True


def reason(row: tuple[str | None, ...], rules: list[DropRule]) -> str | None:
    user, item, rating, price = row
    if user is None:
        return "null_user"
    if item is None:
        return "null_item"
    for rule in rules:
        if meets(price, rule):
            return rule.reason
    return "bad_rating" if number(rating) is None else None


def check(columns: dict[str, Any], recipe: InputRecipe, *, is_text_file: bool = True) -> CheckedRows:
    return check_rows(pa.table(columns), recipe, is_text_file=is_text_file, source="the log")


@given(ROWS, RULES, st.booleans())
def test_every_row_is_good_or_has_the_first_reason(
    rows: list[tuple[str | None, ...]], conditions: list[dict[str, Any]], is_encoded: bool
) -> None:
    rules = [DropRule(reason=f"rule_{i}", column="price", **condition) for i, condition in enumerate(conditions)]
    recipe = InputRecipe(timestamp_column=None, rating_column="rating", drop=tuple(rules))
    names = ("user_id", "item_id", "rating", "price")
    columns = {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}
    if is_encoded:
        columns = {name: column.dictionary_encode() for name, column in columns.items()}
    checked = check(columns, recipe)
    reasons = [reason(row, rules) for row in rows]
    assert checked.drops.counts == Counter(each for each in reasons if each is not None)
    good = [row for row, why in zip(rows, reasons, strict=True) if why is None]
    assert checked.users.dictionary.take(pa.array(checked.users.codes)).to_pylist() == [row[0] for row in good]
    assert checked.items.dictionary.take(pa.array(checked.items.codes)).to_pylist() == [row[1] for row in good]
    assert checked.rating is not None
    assert checked.rating.tolist() == [number(row[2]) for row in good]
    assert set(checked.users.dictionary.to_pylist()) == {row[0] for row in good}, "no id that no row has"
    for name, examples in checked.drops.examples.items():
        found = [tuple(example[column] for column in names) for example in examples]
        assert found == [row for row, why in zip(rows, reasons, strict=True) if why == name]
        assert {example["place"] for example in examples} == {"the log"}


@pytest.mark.parametrize(
    ("ids", "is_text_file", "kind"),
    [
        (pa.array(["1", "-2"]), True, "integer"),
        (pa.array(["1", "-2"]), False, "text"),
        (pa.array(["1", "02"]), True, "text"),
        (pa.array([1, 2], pa.uint8()), False, "integer"),
        (pa.array([1.0, 2.0]), False, "integer"),
        (pa.array(["x", "y"], pa.large_string()).dictionary_encode(), True, "text"),
    ],
)
def test_the_kind_of_ids(ids: pa.Array, is_text_file: bool, kind: str) -> None:
    recipe = InputRecipe(timestamp_column=None)
    assert check({"user_id": ids, "item_id": [1, 1]}, recipe, is_text_file=is_text_file).users.kind == kind


def test_one_text_makes_all_ids_texts() -> None:
    assert merge_kinds(["integer", "text", "integer"]) == "text"
    assert merge_kinds(["integer"]) == merge_kinds([]) == "integer"
    assert cast_ids(pa.array([7]), "text").to_pylist() == ["7"]
    assert cast_ids(pa.array(["7"]), "integer").to_pylist() == [7]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": [1.5]}, r"the log, column 'user_id': ids of type double are not all 64-bit integers; write them"),
        ({"item_id": [b"x"]}, r"the log, column 'item_id': ids cannot be of type binary; give integers or text"),
        ({"rating": [[1]]}, r"the log, column 'rating': type list.* is not numeric"),
    ],
)
def test_a_column_that_cannot_be_what_it_should(columns: dict[str, Any], message: str) -> None:
    recipe = InputRecipe(timestamp_column=None, rating_column="rating")
    with pytest.raises(DataError, match=message):
        check({"user_id": [1], "item_id": [1], "rating": [1], **columns}, recipe)


def test_ratings_of_every_numeric_type() -> None:
    recipe = InputRecipe(timestamp_column=None, rating_column="rating")
    for values in (pa.array([1, 0, None]), pa.array([1.0, 0.0, float("inf")]), pa.array([True, False, None])):
        checked = check({"user_id": [1, 2, 3], "item_id": [1, 1, 1], "rating": values}, recipe)
        assert checked.rating is not None
        assert checked.rating.tolist() == [1.0, 0.0]
        assert checked.drops.counts == {"bad_rating": 1}


class TestDropLog:
    def test_examples_are_the_first_and_counts_are_all(self, tmp_path: Path) -> None:
        logs = []
        for number_ in range(3):
            log = DropLog()
            log.add("bad", 60, ({"line": f"{number_}-{i}"} for i in range(60)))
            log.add("never", 0, [{"line": "x"}])
            logs.append(log)
        merged = DropLog.merged(logs)
        assert merged.counts == {"bad": 180}
        assert merged.total == 180
        assert len(merged.examples["bad"]) == MAX_EXAMPLES
        assert merged.examples["bad"][-1] == {"line": "1-39"}
        merged.write_examples(tmp_path / "drops")
        lines = (tmp_path / "drops" / "bad.jsonl").read_text(encoding="utf8").splitlines()
        assert [json.loads(line) for line in lines] == merged.examples["bad"]
        assert [path.name for path in (tmp_path / "drops").iterdir()] == ["bad.jsonl"]

    def test_text_is_in_descending_order(self) -> None:
        log = DropLog()
        for name, count in (("b", 2), ("a", 2), ("c", 1_000)):
            log.add(name, count)
        assert log.describe() == "1,000 c, 2 a, 2 b"
