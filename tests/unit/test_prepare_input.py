"""Formats, dirty rows, side files, reruns and bad input of `prepare`."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.prepared import PreparedManifest, PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.errors import ArtifactError, DataError, EmptyDataError
from ray_recsys.progress import Event
from tests.executors import EXECUTOR

# Every user has 4 items, every item 4 users or more.
ROWS = [(u, 100 + (u + j) % 6, 1 + (u + j) % 5, 1_000_000_000 + 10 * u + j) for u in range(1, 9) for j in range(4)]
NAMES = ("user_id", "item_id", "rating", "timestamp")
TEXT_NAMES = {"input": {"column_names": list(NAMES)}}


def write_text(path: Path, separator: str, *, header: bool, extra: list[str] | None = None) -> Path:
    lines = [separator.join(NAMES)] if header else []
    lines += [separator.join(map(str, row)) for row in ROWS] + (extra or [])
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return path


def write_json(path: Path, extra: list[str] | None = None) -> Path:
    lines = [json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS] + (extra or [])
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return path


def write_parquet(path: Path, **columns: Any) -> Path:
    table = pa.table({name: [row[i] for row in ROWS] for i, name in enumerate(NAMES)})
    for name, values in columns.items():
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table if values is None else table.append_column(name, pa.array(values))
    pq.write_table(table, path)
    return path


def recipe_of(**sections: Any) -> Recipe:
    return parse_recipe(sections, "test")


def content(path: Path) -> tuple[Any, Any]:
    prepared = PreparedSet.open(path)
    partitions = range(len(prepared.manifest.partitions))
    return prepared.read_items().to_pydict(), [prepared.read_user_ids(p).to_pylist() for p in partitions]


def test_every_format_gives_the_same_prepared_set(tmp_path: Path) -> None:
    logs: dict[str, tuple[Path, dict[str, Any]]] = {
        "parquet": (write_parquet(tmp_path / "log.parquet"), {}),
        "csv": (write_text(tmp_path / "log.csv", ",", header=True), {}),
        "tsv": (write_text(tmp_path / "log.tsv", "\t", header=True), {}),
        "data": (write_text(tmp_path / "log.data", "\t", header=False), TEXT_NAMES),
        "movielens": (write_text(tmp_path / "log.dat", "::", header=False), {}),
        "jsonl": (write_json(tmp_path / "log.jsonl"), {}),
        "semicolons": (write_text(tmp_path / "semi.csv", ";", header=True), {"input": {"separator": ";"}}),
    }
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(logs["csv"][0].read_bytes()))
    logs["gzip"] = (packed, {})
    results = {}
    for name, (path, sections) in logs.items():
        prepare([path.as_uri() if name == "csv" else str(path)], tmp_path / name, recipe_of(**sections), EXECUTOR)
        results[name] = content(tmp_path / name)
    assert all(result == results["parquet"] for result in results.values())
    assert results["parquet"][0]["item_id"][0] in range(100, 106)


def test_chunks_and_folders_lose_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "log"
    (folder / "inner").mkdir(parents=True)
    write_text(folder / "a.csv", ",", header=True)
    (folder / "inner" / "b.csv").write_bytes(b"\xef\xbb\xbfuser_id,item_id,rating,timestamp\r\n9,100,3,5\r\n9,101,3,6")
    (folder / "_SUCCESS").touch()
    whole = prepare([str(folder)], tmp_path / "whole", Recipe(), EXECUTOR)
    assert whole.rows_in == len(ROWS) + 2
    for block_bytes in (1, 7, 30, 64, 1000):
        monkeypatch.setattr("ray_recsys.core.preparing.log_reader.LINE_BLOCK_BYTES", block_bytes)
        cut = prepare([str(folder)], tmp_path / f"cut-{block_bytes}", Recipe(), EXECUTOR)
        assert cut.rows_in == whole.rows_in
        assert content(tmp_path / f"cut-{block_bytes}") == content(tmp_path / "whole")


def test_dirty_text_rows_are_counted_with_examples(tmp_path: Path) -> None:
    extra = [
        "1,2",
        "1,2,3,4,5",
        ",100,3,1000",
        "1,,3,1000",
        "1,100,3,soon",
        "1,100,high,1000",
        '1,"100,3,1000',
        "",
        "  ",
        ",,,",
    ]
    log = write_text(tmp_path / "log.csv", ",", header=True, extra=extra)
    with log.open("ab") as file:
        file.write(b"\xff\xfe,100,3,1000\n")
    messages: list[Event] = []
    recipe = recipe_of(input={"rating_column": "rating"})
    manifest = prepare([str(log)], tmp_path / "out", recipe, EXECUTOR, report=messages.append)
    assert manifest.rows_dropped == {
        "bad_rating": 1,
        "bad_timestamp": 1,
        "malformed_row": 5,
        "null_item": 1,
        "null_user": 2,
    }
    assert manifest.rows_in == len(ROWS) + 10 == manifest.rows_kept + sum(manifest.rows_dropped.values())
    assert "5 malformed_row" in str(messages[-1])
    lines = (tmp_path / "out" / "drops" / "malformed_row.jsonl").read_text().splitlines()
    assert {json.loads(line)["line"] for line in lines} >= {"1,2", "1,2,3,4,5", '1,"100,3,1000'}
    assert json.loads((tmp_path / "out" / "drops" / "bad_timestamp.jsonl").read_text())["timestamp"] == "soon"


def test_a_line_end_inside_quotes_ends_the_record_and_both_halves_are_told(tmp_path: Path) -> None:
    names = ["user_id", "item_id", "rating", "timestamp", "note"]
    lines = [",".join(names), *(",".join(map(str, row)) + ",fine" for row in ROWS), '1,100,3,1000,"two', 'lines"']
    log = tmp_path / "log.csv"
    log.write_text("\n".join(lines) + "\n", encoding="utf8")
    manifest = prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR)
    assert manifest.rows_dropped == {"malformed_row": 2}
    examples = (tmp_path / "out" / "drops" / "malformed_row.jsonl").read_text().splitlines()
    assert [json.loads(example)["line"] for example in examples] == ['1,100,3,1000,"two', 'lines"']


def test_dirty_json_lines_are_counted(tmp_path: Path) -> None:
    extra = ["{", "[1]", '{"user_id": [1], "item_id": 2}', '{"user_id": true, "item_id": 2}', '{"item_id": 100}']
    manifest = prepare([str(write_json(tmp_path / "log.jsonl", extra))], tmp_path / "out", Recipe(), EXECUTOR)
    assert manifest.rows_dropped == {"malformed_row": 4, "null_user": 1}


def test_drop_rules_name_the_first_reason(tmp_path: Path) -> None:
    rules = [
        {"reason": "cancelled", "column": "invoice", "matches": "^C"},
        {"reason": "free", "column": "price", "at_most": 0},
        {"reason": "no_country", "column": "country", "is_null": True},
        {"reason": "not_a_product", "column": "code", "not_matches": "^[0-9]"},
    ]
    log = write_parquet(
        tmp_path / "log.parquet",
        invoice=[["C1", "C2", "3", "4", "5"][min(i, 4)] for i in range(len(ROWS))],
        price=[[0.0, 1.0, 0.0, 1.0, 1.0][min(i, 4)] for i in range(len(ROWS))],
        country=[None if i == 3 else "x" for i in range(len(ROWS))],
        code=["POST" if i == 4 else "85048" for i in range(len(ROWS))],
    )
    manifest = prepare([str(log)], tmp_path / "out", recipe_of(input={"drop": rules}), EXECUTOR)
    assert manifest.rows_dropped == {"cancelled": 2, "free": 1, "no_country": 1, "not_a_product": 1}


@pytest.mark.parametrize(
    ("times", "unit"),
    [
        ([row[3] for row in ROWS], "auto"),
        ([row[3] * 1000 for row in ROWS], "auto"),
        ([row[3] * 10**9 for row in ROWS], "ns"),
        ([float(row[3]) for row in ROWS], "s"),
        (pa.array([datetime.fromtimestamp(row[3], UTC) for row in ROWS], pa.timestamp("ns", "UTC")), "auto"),
        ([datetime.fromtimestamp(row[3], UTC).isoformat() for row in ROWS], "auto"),
        ([datetime.fromtimestamp(row[3], UTC).strftime("%Y-%m-%d %H:%M:%S") for row in ROWS], "auto"),
    ],
)
def test_times_in_any_unit_are_the_same_seconds(tmp_path: Path, times: Any, unit: str) -> None:
    log = write_parquet(tmp_path / "log.parquet", timestamp=times)
    prepare(
        [str(log)], tmp_path / "out", recipe_of(input={"timestamp_unit": unit}, prepare={"num_partitions": 1}), EXECUTOR
    )
    histories = PreparedSet.open(tmp_path / "out").read_partition(0)
    assert histories.training.timestamp_s is not None
    assert histories.test.timestamp_s is not None
    assert histories.training.timestamp_s[:2].tolist() == [1_000_000_010, 1_000_000_011]
    assert histories.test.timestamp_s[0] == 1_000_000_013


def test_finer_than_a_second_decides_the_order(tmp_path: Path) -> None:
    rows = [(u, i, 1_500_000_000_000 + 5 - i) for u in (1, 2) for i in range(5)]  # the higher the item, the earlier
    table = pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)))
    pq.write_table(table, tmp_path / "log.parquet")
    prepare([str(tmp_path / "log.parquet")], tmp_path / "out", recipe_of(prepare={"num_partitions": 1}), EXECUTOR)
    prepared = PreparedSet.open(tmp_path / "out")
    ids = prepared.read_items()["item_id"].to_pylist()
    assert [ids[i] for i in prepared.read_partition(0).training.item_idx[:3]] == [4, 3, 2]


@pytest.mark.parametrize("text_ids", [True, False])
def test_ids_come_back_as_they_went_in(tmp_path: Path, text_ids: bool) -> None:
    ids = ["007" if text_ids and row[0] == 7 else str(row[0]) for row in ROWS]
    lines = [f"{user},{row[1]},{row[2]},{row[3]}" for user, row in zip(ids, ROWS, strict=True)]
    (tmp_path / "log.csv").write_text(",".join(NAMES) + "\n" + "\n".join(lines), encoding="utf8")
    prepare([str(tmp_path / "log.csv")], tmp_path / "out", Recipe(), EXECUTOR)
    items, users = content(tmp_path / "out")
    found = {user for part in users for user in part}
    assert found == ({"007", *(str(u) for u in range(1, 9) if u != 7)} if text_ids else set(range(1, 9)))
    assert all(isinstance(item, int) for item in items["item_id"])


def test_float_ids_of_a_pandas_file_are_integers_with_nulls(tmp_path: Path) -> None:
    users = pa.array([float("nan") if i == 0 else float(row[0]) for i, row in enumerate(ROWS)])
    log = write_parquet(tmp_path / "log.parquet", user_id=users)
    assert prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR).rows_dropped == {"null_user": 1}
    assert 1 in {user for part in content(tmp_path / "out")[1] for user in part}


def test_without_times_only_the_random_split(tmp_path: Path) -> None:
    log = write_parquet(tmp_path / "log.parquet", timestamp=None)
    with pytest.raises(DataError, match=r"no column 'timestamp' \(columns found: user_id, item_id, rating"):
        prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR)
    recipe = recipe_of(input={"timestamp_column": "none"}, split={"method": "random_per_user", "test_fraction": 0.25})
    manifest = prepare([str(log)], tmp_path / "out", recipe, EXECUTOR)
    assert manifest.num_test == 8
    assert PreparedSet.open(tmp_path / "out").read_partition(0).training.timestamp_s is None


class TestSideItems:
    def test_titles_travel_and_missing_ones_are_null(self, tmp_path: Path) -> None:
        log = write_parquet(tmp_path / "log.parquet")
        side = tmp_path / "movies.dat"
        side.write_bytes("\n".join(f"{i}::Película {i}::A|B" for i in range(100, 105)).encode("latin-1"))
        recipe = recipe_of(items={"encoding": "latin-1", "category_column": "category"})
        prepare([str(log)], tmp_path / "out", recipe, EXECUTOR, items=str(side))
        items, _ = content(tmp_path / "out")
        titles = dict(zip(items["item_id"], items["title"], strict=True))
        assert titles == {**{i: f"Película {i}" for i in range(100, 105)}, 105: None}
        assert set(items["category"]) == {"A|B", None}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, "does not exist"),
            ("item_id,title\n100,a\n100,b\n", "occur more than once, e.g. '100'"),
            ("id,title\n100,a\n", r"no column 'item_id' \(columns found: id, title\)"),
            ("item_id,title\n100\n", "1 malformed rows"),
        ],
    )
    def test_a_bad_side_file_is_refused(self, tmp_path: Path, text: str | None, message: str) -> None:
        log, side = write_parquet(tmp_path / "log.parquet"), tmp_path / "items.csv"
        if text is not None:
            side.write_text(text, encoding="utf8")
        with pytest.raises(DataError, match=message):
            prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR, items=str(side))
        assert not (tmp_path / "out").exists()


class TestBadInput:
    @pytest.mark.parametrize(
        ("column", "values", "message"),
        [
            ("timestamp", [True] * len(ROWS), "type bool cannot hold times"),
            ("user_id", [1.5] * len(ROWS), "not all 64-bit integers"),
            ("item_id", [[1]] * len(ROWS), "ids cannot be of type list"),
        ],
    )
    def test_a_column_of_an_impossible_type(self, tmp_path: Path, column: str, values: Any, message: str) -> None:
        log = write_parquet(tmp_path / "log.parquet", **{column: values})
        with pytest.raises(DataError, match=message):
            prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR)
        assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]

    def test_missing_file_unknown_ending_and_damage(self, tmp_path: Path) -> None:
        for name, message in (
            ("none.csv", "does not exist"),
            ("log.xyz", "an unknown ending"),
            ("b.parquet", "as Parquet"),
        ):
            if name != "none.csv":
                (tmp_path / name).write_text("nonsense", encoding="utf8")
            with pytest.raises(DataError, match=message):
                prepare([str(tmp_path / name)], tmp_path / "out", Recipe(), EXECUTOR)
        with pytest.raises(DataError, match="nowhere://x"):
            prepare(["nowhere://x/log.csv"], tmp_path / "out", Recipe(), EXECUTOR)

    def test_nothing_left_says_which_filter(self, tmp_path: Path) -> None:
        log = write_parquet(tmp_path / "log.parquet")
        recipe = recipe_of(prepare={"min_interactions_per_item": 1000})
        with pytest.raises(
            EmptyDataError, match=r"no training interaction is left of 32 rows \(dropped: 32 rare_item\)"
        ):
            prepare([str(log)], tmp_path / "out", recipe, EXECUTOR)
        recipe = recipe_of(input={"rating_column": "rating"}, prepare={"min_rating": 9})
        with pytest.raises(EmptyDataError, match="32 below_min_rating"):
            prepare([str(log)], tmp_path / "out", recipe, EXECUTOR)
        log = write_parquet(tmp_path / "log.parquet", user_id=pa.nulls(len(ROWS), pa.int64()))
        with pytest.raises(EmptyDataError, match="32 null_user"):
            prepare([str(log)], tmp_path / "out", Recipe(), EXECUTOR)

    def test_one_user_and_one_item(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="only 1 user and"):
            prepare(
                [str(write_parquet(tmp_path / "u.parquet", user_id=[1] * 32))], tmp_path / "out", Recipe(), EXECUTOR
            )
        with pytest.raises(DataError, match="and 1 item are left"):
            prepare(
                [str(write_parquet(tmp_path / "i.parquet", item_id=[1] * 32))], tmp_path / "out", Recipe(), EXECUTOR
            )


class TestRerun:
    def run(self, tmp_path: Path, recipe: Recipe, *, overwrite: bool = False) -> tuple[PreparedManifest, list[Event]]:
        messages: list[Event] = []
        log = str(tmp_path / "log.parquet")
        manifest = prepare([log], tmp_path / "out", recipe, EXECUTOR, overwrite=overwrite, report=messages.append)
        return manifest, messages

    def test_finished_output_is_recognised(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "log.parquet")
        first, _ = self.run(tmp_path, Recipe())
        again, messages = self.run(tmp_path, recipe_of(train={"epochs": 3}))
        assert again == first
        assert "is up to date" in str(messages[0])

    def test_another_recipe_or_log_is_refused_until_overwrite(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "log.parquet")
        self.run(tmp_path, Recipe())
        random = recipe_of(split={"method": "random_per_user"})
        with pytest.raises(ArtifactError, match=r"split.method: was 'leave_one_out', now 'random_per_user'"):
            self.run(tmp_path, random)
        assert self.run(tmp_path, random, overwrite=True)[0].split["method"] == "random_per_user"
        write_parquet(tmp_path / "log.parquet", rating=[1] * len(ROWS))
        with pytest.raises(ArtifactError, match="input files differ"):
            self.run(tmp_path, random)

    def test_what_is_no_prepared_set_is_never_replaced(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "log.parquet")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "letter.txt").write_text("dear", encoding="utf8")
        for overwrite in (False, True):
            with pytest.raises(ArtifactError, match="is not a prepared set"):
                self.run(tmp_path, Recipe(), overwrite=overwrite)
        assert (tmp_path / "out" / "letter.txt").exists()

    @pytest.mark.parametrize("manifest", ['{"kind": "run"}', "[]", "no JSON"])
    def test_another_artefact_is_never_replaced(self, tmp_path: Path, manifest: str) -> None:
        write_parquet(tmp_path / "log.parquet")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "manifest.json").write_text(manifest, encoding="utf8")
        with pytest.raises(ArtifactError, match="is not a prepared set, so it is not overwritten"):
            self.run(tmp_path, Recipe(), overwrite=True)
        assert (tmp_path / "out" / "manifest.json").read_text(encoding="utf8") == manifest


def test_a_large_compressed_file_is_said_to_be_read_by_one_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "packed.csv.gz"
    packed.write_bytes(gzip.compress(write_text(tmp_path / "log.csv", ",", header=True).read_bytes()))
    lines: list[Event] = []
    prepare([str(packed)], tmp_path / "small", Recipe(), EXECUTOR, report=lines.append)
    assert str(lines[0]).endswith("in 1 chunk(s)")
    monkeypatch.setattr("ray_recsys.core.preparing.pipeline.LINE_BLOCK_BYTES", 100)
    prepare([str(packed)], tmp_path / "large", Recipe(), EXECUTOR, report=lines.append)
    assert any("one task each reads 1 compressed text file(s) as a whole, e.g." in str(line) for line in lines)


def test_a_robot_is_dropped_with_all_its_rows_and_counted(tmp_path: Path) -> None:
    extra = [f"99,{100 + number % 6},5,{1_000_000_000 + number}" for number in range(50)]
    log = write_text(tmp_path / "log.csv", ",", header=True, extra=extra)
    manifest = prepare(
        [str(log)], tmp_path / "out", recipe_of(prepare={"max_interactions_per_user": 49}), EXECUTOR, overwrite=True
    )
    assert (manifest.num_users, manifest.rows_dropped) == (8, {"robot": 50})
    examples = [json.loads(line) for line in (tmp_path / "out/drops/robot.jsonl").read_text().splitlines()]
    assert {example["user_id"] for example in examples} == {99}
    recipe = recipe_of(prepare={"max_interactions_per_user": 50})
    assert prepare([str(log)], tmp_path / "out", recipe, EXECUTOR, overwrite=True).num_users == 9
