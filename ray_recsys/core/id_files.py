"""Parquet and CSV files of ids that a command is given: users, pairs, candidate lists; read batch by batch.

All columns of a CSV file are read as text, so that ids and columns that are only passed on come out as they went in; a
vocabulary finds `7` and `"7"` alike. Knows nothing of what the ids mean.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ray_recsys.errors import DataError, EmptyDataError

_BATCH_ROWS = 65_536
_ENDINGS = (".parquet", ".csv", ".txt")


@dataclass(frozen=True, slots=True)
class IdFile:
    """A file whose columns were looked at and whose rows were not."""

    path: Path
    schema: pa.Schema

    @classmethod
    def open(cls, path: Path, required: Sequence[str]) -> Self:
        """Returns a file that has the required columns; a .txt file has one column and may lack its header.

        Raises:
            DataError: It is missing, not readable, of another ending, or lacks a column; names the columns found.
        """
        check_ending(path, _ENDINGS)
        if not path.is_file():
            raise DataError(f"{path} does not exist or is no file; give a file with columns {', '.join(required)}")
        try:
            schema = pq.read_schema(path) if path.suffix == ".parquet" else _text_schema(path, required)
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
        missing = [name for name in required if name not in schema.names]
        if missing:
            raise DataError(f"{path} has no column {', '.join(missing)}; columns found: {', '.join(schema.names)}")
        return cls(path, schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows in order, a bounded number at a time.

        Raises:
            DataError: The file is damaged somewhere.
        """
        try:
            if self.path.suffix == ".parquet":
                with pq.ParquetFile(self.path) as file:
                    yield from file.iter_batches(_BATCH_ROWS)
            elif self.schema.names:
                yield from self._text_batches()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{self.path} cannot be read to its end: {error}") from error

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Returns some columns of all rows.

        Raises:
            EmptyDataError: There is no row.
            DataError: A value is null; names the column and the row.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        table = pa.Table.from_batches([batch.select(columns) for batch in self.batches()], schema)
        if not table.num_rows:
            raise EmptyDataError(f"{self.path} has no rows; give at least one")
        for name in columns:
            check_no_nulls(table[name], f"{self.path}, column {name}")
        return table

    def _text_batches(self) -> Iterator[pa.RecordBatch]:
        has_header = self.path.suffix != ".txt" or _first_line(self.path) == self.schema.names[0]
        read = pacsv.ReadOptions(column_names=self.schema.names, skip_rows=int(has_header))
        parse = pacsv.ParseOptions(delimiter="\t" if self.path.suffix == ".txt" else ",")
        convert = pacsv.ConvertOptions(column_types=self.schema)
        try:
            with pacsv.open_csv(self.path, read, parse, convert) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            if "Empty CSV file" not in str(error):
                raise


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Checks a file's ending.

    Raises:
        DataError: It is none of those given.
    """
    if path.suffix not in endings:
        raise DataError(f"{path} ends with {path.suffix or 'nothing'!r}; files here end with {', '.join(endings)}")


def check_no_nulls(column: pa.ChunkedArray, place: str) -> None:
    """Checks that a column has a value in every row.

    Raises:
        DataError: It has not; names the place and the first such row.
    """
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(f"{place}: {column.null_count} nulls, the first in row {row + 1}; every row needs a value")


def _first_line(path: Path) -> str:
    with path.open(encoding="utf8") as file:
        return file.readline().strip()


def _text_schema(path: Path, required: Sequence[str]) -> pa.Schema:
    if path.suffix == ".txt":
        return pa.schema([(required[0], pa.string())])
    with path.open("rb") as file:
        header = file.readline()
    names = pacsv.read_csv(pa.py_buffer(header)).column_names if header.strip() else []
    return pa.schema([(name, pa.string()) for name in names])
