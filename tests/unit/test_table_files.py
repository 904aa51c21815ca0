"""Files of ids are read as they were written, and what is wrong with one is said by its name, column and row."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.core.table_files import IdFile, check_ending, check_no_nulls, write_table_file
from ray_recsys.errors import DataError, EmptyDataError

PAIRS = ("user_id", "item_id")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf8")
    return path


class TestReading:
    def test_csv_values_stay_text_and_extra_columns_stay(self, tmp_path: Path) -> None:
        file = IdFile.open(write(tmp_path / "a.csv", "user_id,note,item_id\n007,1.50,7\n8,,9\n"), PAIRS)
        (batch,) = file.batches()
        assert batch.to_pydict() == {"user_id": ["007", "8"], "note": ["1.50", ""], "item_id": ["7", "9"]}
        assert file.read(PAIRS).column_names == ["user_id", "item_id"]

    def test_parquet_values_keep_their_types(self, tmp_path: Path) -> None:
        table = pa.table({"user_id": [1, 2], "item_id": ["a", "b"]})
        pq.write_table(table, tmp_path / "a.parquet")
        assert IdFile.open(tmp_path / "a.parquet", PAIRS).read(PAIRS).equals(table)

    @pytest.mark.parametrize(
        ("text", "ids"), [("user_id\na b\nc\n", ["a b", "c"]), ("a,1\nuser_id\n", ["a,1", "user_id"])]
    )
    def test_a_txt_file_has_one_column_and_perhaps_a_header(self, tmp_path: Path, text: str, ids: list[str]) -> None:
        file = IdFile.open(write(tmp_path / "users.txt", text), ("user_id",))
        assert file.read(("user_id",))["user_id"].to_pylist() == ids

    def test_a_quoted_header_is_understood(self, tmp_path: Path) -> None:
        file = IdFile.open(write(tmp_path / "a.csv", '"user_id","item_id"\n1,2\n'), PAIRS)
        assert file.read(PAIRS).to_pydict() == {"user_id": ["1"], "item_id": ["2"]}

    @pytest.mark.parametrize("text", ["user_id,item_id\n", "user_id,item_id\n\n"])
    def test_a_file_without_rows(self, tmp_path: Path, text: str) -> None:
        file = IdFile.open(write(tmp_path / "a.csv", text), PAIRS)
        with pytest.raises(EmptyDataError, match=r"a\.csv has no rows; give at least one"):
            file.read(PAIRS)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.csv", "user_id,movie\n1,2\n", r"a\.csv has no column item_id \(columns found: user_id, movie\)"),
            ("a.csv", "", r"has no column user_id, item_id \(columns found: \)"),
            ("a.parquet", "nonsense", r"a\.parquet cannot be read as parquet"),
            ("a.json", "{}", r"a\.json has ending '\.json'; give a file that ends in \.parquet or \.csv or \.txt"),
            ("a", "{}", "has no ending"),
        ],
    )
    def test_an_unusable_file(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        with pytest.raises(DataError, match=message):
            IdFile.open(write(tmp_path / name, text), PAIRS)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"none\.csv does not exist .*; give a file with columns user_id, item_id"):
            IdFile.open(tmp_path / "none.csv", PAIRS)

    def test_a_row_that_is_too_short_is_found_when_it_is_read(self, tmp_path: Path) -> None:
        file = IdFile.open(write(tmp_path / "a.csv", "user_id,item_id\n1,2\n3\n"), PAIRS)
        with pytest.raises(DataError, match=r"cannot read all of .*a\.csv"):
            list(file.batches())

    def test_nulls_are_refused_by_column_and_row(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"user_id": [1, 2, 3], "item_id": [4, None, None]}), tmp_path / "a.parquet")
        with pytest.raises(DataError, match=r"a\.parquet, column item_id: 2 nulls, the first in row 2"):
            IdFile.open(tmp_path / "a.parquet", PAIRS).read(PAIRS)
        check_no_nulls(pa.chunked_array([[1], [2]]), "nothing")


class TestWriting:
    SCHEMA = pa.schema({"user_id": pa.string(), "score": pa.float32()})

    def batches(self) -> Iterator[pa.RecordBatch]:
        for ids in (["a", 'b "quoted"'], [], ["c,d"]):
            yield pa.record_batch(
                [pa.array(ids, pa.string()), pa.array([0.5] * len(ids), pa.float32())], schema=self.SCHEMA
            )

    @pytest.mark.parametrize("ending", [".csv", ".parquet"])
    def test_what_is_written_is_read_back(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / "deep" / f"scores{ending}"
        assert write_table_file(path, self.SCHEMA, self.batches()) == 3
        table = IdFile.open(path, ("user_id",)).read(("user_id", "score"))
        assert table["user_id"].to_pylist() == ["a", 'b "quoted"', "c,d"]
        assert [float(score) for score in table["score"].to_pylist()] == [0.5] * 3

    def test_a_failure_halfway_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = write(tmp_path / "scores.csv", "old")

        def fail() -> Iterator[pa.RecordBatch]:
            yield next(self.batches())
            raise RuntimeError("no model")

        with pytest.raises(RuntimeError, match="no model"):
            write_table_file(path, self.SCHEMA, fail())
        assert path.read_text(encoding="utf8") == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_no_batches_make_an_empty_table(self, tmp_path: Path) -> None:
        assert write_table_file(tmp_path / "a.parquet", self.SCHEMA, []) == 0
        assert pq.read_table(tmp_path / "a.parquet").schema.equals(self.SCHEMA)

    def test_endings(self, tmp_path: Path) -> None:
        check_ending(tmp_path / "a.csv", (".csv",))
        with pytest.raises(DataError, match=r"give a file that ends in \.csv or \.x"):
            check_ending(tmp_path / "a.CSV", (".csv", ".x"))
