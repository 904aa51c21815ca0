"""The first rows of an undescribed log: its file format, and the content of its columns."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from ray_recsys.core.preparing.log_files import LogFile, iter_line_blocks, list_log_files
from ray_recsys.core.preparing.log_reader import MOVIELENS_COLUMNS, open_parquet
from ray_recsys.errors import DataError

SAMPLE_ROWS = 100_000
_SAMPLE_BYTES = 4 << 20
_SEPARATORS = ",;\t|"
_NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the sample."""

    name: str
    values: pa.Array
    num_distinct: int

    @property
    def type(self) -> str:
        """The type as it was read, e.g. int64."""
        return str(self.values.type)

    @property
    def examples(self) -> list[str]:
        """The first distinct values, as text."""
        distinct = self.values.slice(0, 1000).unique().drop_null()
        return [str(value)[:40] for value in distinct.slice(0, _NUM_EXAMPLES).to_pylist()]


@dataclass(frozen=True, slots=True)
class LogSample:
    """The first rows of a log's first file."""

    file: LogFile
    num_files: int
    columns: tuple[Column, ...]
    separator: str | None = None
    """Of a text file, where it is not that of its format."""
    column_names: tuple[str, ...] = ()
    """Names given to the columns of a text file without a header; empty: it has one."""

    @property
    def num_rows(self) -> int:
        """Rows in the sample."""
        return len(self.columns[0].values) if self.columns else 0


def read_sample(inputs: Sequence[str]) -> LogSample:
    """Returns the sample of a log.

    Raises:
        DataError: There is no log, or its first file is empty or cannot be read.
    """
    files = list_log_files(inputs, "auto")
    file = files[0]
    separator: str | None = None
    names: tuple[str, ...] = ()
    if file.format == "parquet":
        with open_parquet(file) as parquet:
            table = pa.Table.from_batches(islice(parquet.iter_batches(SAMPLE_ROWS), 1), parquet.schema_arrow)
    elif file.format == "jsonl":
        table = pyarrow.json.read_json(io.BytesIO(_first_lines(file)))
    else:
        table, separator, names = _read_text(file)
    if table.num_rows == 0:
        raise DataError(f"{file.uri} has no rows", remedy="give a log with at least one interaction")
    columns = [
        Column(name, column.combine_chunks(), _num_distinct(column))
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return LogSample(file, len(files), tuple(columns), separator, names)


def _first_lines(file: LogFile) -> bytes:
    return next(iter_line_blocks(file, 0, None, block_bytes=_SAMPLE_BYTES), b"")


def _read_text(file: LogFile) -> tuple[pa.Table, str | None, tuple[str, ...]]:
    data = _first_lines(file)
    if file.format == "movielens":
        return _parse(data.replace(b"::", b"\t"), "\t", MOVIELENS_COLUMNS), None, ()
    rows = data.splitlines()[:2]
    usual = "\t" if file.format == "tsv" else ","
    separator = max(usual + _SEPARATORS, key=lambda mark: rows[0].count(mark.encode())) if rows else usual
    names = _names_without_header(rows, separator)
    return _parse(data, separator, names), None if separator == usual else separator, names


def _names_without_header(rows: Sequence[bytes], separator: str) -> tuple[str, ...]:
    """Returns names for the columns of a file without a header: one whose first line has a number."""
    first = next(csv.reader([rows[0].decode("utf8", "replace")], delimiter=separator), []) if rows else []
    if not any(_is_number(field) for field in first):
        return ()
    if len(first) == len(MOVIELENS_COLUMNS) and all(_is_number(field) for field in first):
        return MOVIELENS_COLUMNS  # MovieLens' u.data, and what is written like it
    return tuple(f"column_{number}" for number in range(1, len(first) + 1))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _parse(data: bytes, separator: str, names: Sequence[str]) -> pa.Table:
    try:
        return pyarrow.csv.read_csv(
            io.BytesIO(data),
            pyarrow.csv.ReadOptions(column_names=list(names) or None, block_size=len(data) + 1),
            pyarrow.csv.ParseOptions(delimiter=separator, invalid_row_handler=lambda _: "skip"),
        ).slice(0, SAMPLE_ROWS)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"the first lines of the log cannot be read as columns ({error})", remedy="write [input] by hand"
        ) from error


def _num_distinct(column: pa.ChunkedArray) -> int:
    try:
        return int(pc.count_distinct(column).as_py())
    except pa.ArrowNotImplementedError:  # lists and structs hold neither ids nor times
        return 0
