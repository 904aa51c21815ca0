"""User lines with separate train and test files: pairs and reasons of drops against a few lines of Python."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.inspecting.audit import audit
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.log_text import TextLayout, parse_block
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.errors import DataError, RecipeError

Lines = dict[str, list[str]]


def recipe(**split: object) -> Recipe:
    return parse_recipe({"input": {"format": "user_lines"}, "split": {"method": "given", **split}}, "test")


def write(path: Path, lines: list[tuple[str, list[str]]]) -> str:
    path.write_text("".join(" ".join([user, *items]) + "\n" for user, items in lines), encoding="utf8")
    return str(path)


def random_lines(seed: int) -> tuple[list[tuple[str, list[str]]], list[tuple[str, list[str]]]]:
    """Returns train and test lines with repeated pairs, users without items, and ids that occur in the test alone."""
    rng = np.random.default_rng(seed)

    def lines(num_users: int, num_items: int, longest: int) -> list[tuple[str, list[str]]]:
        return [
            (str(user), rng.integers(0, num_items, rng.integers(0, longest)).astype(str).tolist())
            for user in rng.permutation(num_users)
        ]

    return lines(50, 30, 12), lines(55, 34, 5)


def reference(
    train: list[tuple[str, list[str]]], test: list[tuple[str, list[str]]]
) -> tuple[Lines, Lines, dict[str, int], int]:
    """Returns (training items by user, test items by user, drops, rows) without a validation."""
    drops: Counter[str] = Counter()
    pairs = {}
    for name, lines in (("train", train), ("test", test)):
        drops["null_item"] += sum(not items for _, items in lines)
        found = [(user, item) for user, items in lines for item in items]
        pairs[name] = set(found)
        others = [pair for pair in found if name == "train" or pair not in pairs["train"]]
        drops["test_pair_in_training"] += len(found) - len(others)
        drops["duplicate"] += len(others) - len(set(others))
    users, items = {user for user, _ in pairs["train"]}, {item for _, item in pairs["train"]}
    held_out = pairs["test"] - pairs["train"]
    drops["held_out_user_not_in_training"] = sum(user not in users for user, _ in held_out)
    drops["held_out_item_not_in_training"] = sum(user in users and item not in items for user, item in held_out)
    kept = {(user, item) for user, item in held_out if user in users and item in items}
    rows = sum(max(len(items), 1) for _, items in [*train, *test])
    return _by_user(pairs["train"]), _by_user(kept), {k: v for k, v in sorted(drops.items()) if v}, rows


def _by_user(pairs: set[tuple[str, str]]) -> Lines:
    return {user: sorted(i for u, i in pairs if u == user) for user in {user for user, _ in pairs}}


def contents(prepared: PreparedSet) -> tuple[Lines, Lines, Lines]:
    """Returns training, validation and test items by user, as text."""
    items = np.array(prepared.read_items()["item_id"].to_pylist()).astype(str)
    parts: tuple[Lines, Lines, Lines] = ({}, {}, {})
    for number in range(len(prepared.manifest.partitions)):
        histories = prepared.read_partition(number)
        for part, found in zip((histories.training, histories.validation, histories.test), parts, strict=True):
            for row, user in enumerate(prepared.read_user_ids(number).to_pylist()):
                mine = items[part.item_idx[part.offsets[row] : part.offsets[row + 1]]]
                if len(mine):
                    found[str(user)] = sorted(mine.tolist())
    return parts


@pytest.mark.parametrize("seed", range(4))
def test_train_and_test_files_become_what_the_reference_says(tmp_path: Path, seed: int) -> None:
    train, test = random_lines(seed)
    files = write(tmp_path / "train.txt", train), write(tmp_path / "test.txt", test)
    output, executor = tmp_path / "set", SerialExecutor()
    manifest = prepare([files[0]], output, recipe(validation_fraction=0), executor, test=[files[1]])
    training, validation, held_out = contents(PreparedSet.open(output))
    expected_training, expected_test, drops, rows = reference(train, test)
    assert training == expected_training
    assert validation == {}
    assert held_out == expected_test
    assert manifest.rows_dropped == drops
    assert manifest.rows_in == rows
    assert audit(output, executor).passed


def test_validation_is_a_share_of_the_train_file_and_leaves_the_test_as_it_is(tmp_path: Path) -> None:
    train, test = random_lines(7)
    files = write(tmp_path / "train.txt", train), write(tmp_path / "test.txt", test)
    prepare([files[0]], tmp_path / "set", recipe(validation_fraction=0.25), SerialExecutor(), test=[files[1]])
    training, validation, held_out = contents(PreparedSet.open(tmp_path / "set"))
    everything, _, _, _ = reference(train, test)
    known = {item for items in training.values() for item in items}
    for user, items in everything.items():
        num_held_out = min(int(len(items) * 0.25 + 0.5), len(items) - 1)
        assert len(training[user]) == len(items) - num_held_out
        left = set(items) - set(training[user])
        assert set(validation.get(user, [])) == left & known
    assert {item for items in held_out.values() for item in items} <= known


def test_lines_may_be_separated_by_tabs_blanks_or_the_recipes_separator() -> None:
    layout = TextLayout("user_lines", ("user_id", "item_id"), False, "", "utf8")
    found = parse_block(b"a  1\t2 \r\n\nb\nc 3", layout, ["item_id", "user_id"], is_first=True)
    assert found.table.to_pydict() == {"item_id": ["1", "2", None, "3"], "user_id": ["a", "a", "b", "c"]}
    assert found.malformed == []
    commas = TextLayout("user_lines", ("user_id", "item_id"), False, ",", "utf8")
    found = parse_block(b"a,1,,x y\n", commas, ["user_id", "item_id"], is_first=True)
    assert found.table.to_pydict() == {"user_id": ["a", "a", "a"], "item_id": ["1", None, "x y"]}


def test_a_given_split_needs_its_test_files_and_the_other_way_round(tmp_path: Path) -> None:
    train = write(tmp_path / "train.txt", [("1", ["2", "3"]), ("2", ["2"])])
    with pytest.raises(DataError, match="'given' with 0 test files"):
        prepare([train], tmp_path / "set", recipe(), SerialExecutor())
    other = parse_recipe({"input": {"format": "user_lines"}, "split": {"method": "random_per_user"}}, "test")
    with pytest.raises(DataError, match="'random_per_user' with 1 test files"):
        prepare([train], tmp_path / "set", other, SerialExecutor(), test=[train])


def test_another_test_file_is_other_data(tmp_path: Path) -> None:
    lines = [("1", ["2", "3"]), ("2", ["2", "3", "4"])]
    train, test = write(tmp_path / "a.txt", lines), write(tmp_path / "b.txt", lines)
    first = prepare([train], tmp_path / "1", recipe(), SerialExecutor(), test=[test])
    second = prepare([test], tmp_path / "2", recipe(), SerialExecutor(), test=[train])
    assert first.input_fingerprint != second.input_fingerprint


def test_times_and_ratings_are_refused() -> None:
    for key in ("timestamp_column", "rating_column"):
        with pytest.raises(RecipeError, match=f"{key} = 'x': format = 'user_lines'"):
            parse_recipe({"input": {"format": "user_lines", key: "x"}, "split": {"method": "given"}}, "test")
