"""Parquet and CSV files that commands exchange with users: files of ids to read, tables of results to write.

Both are processed batch by batch. All columns of a CSV file are read as text, so that ids and extra columns come out
exactly as they went in; a vocabulary finds `7` and `"7"` alike.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from ray_recsys.errors import DataError, EmptyDataError
from ray_recsys.storage.files import is_file, open_input, written_file
from ray_recsys.storage.location import Location, LocationLike

OUTPUT_ENDINGS = (".parquet", ".csv")
_INPUT_ENDINGS = (*OUTPUT_ENDINGS, ".txt")
_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class IdFile:
    """A file whose columns have been checked and whose rows have not."""

    path: Location
    schema: pa.Schema

    @classmethod
    def open(cls, path: LocationLike, required: Sequence[str]) -> Self:
        """Opens a file that must have the required columns; a .txt file has one column and may lack its header.

        Raises:
            DataError: The file is missing or unreadable, has another ending, or lacks a column.
        """
        path = Location.of(path)
        check_ending(path, _INPUT_ENDINGS)
        if not is_file(path):
            raise DataError(
                f"{path} does not exist or is not a file", remedy=f"give a file with columns {', '.join(required)}"
            )
        try:
            with open_input(path) as source:
                schema = pq.read_schema(source) if path.suffix == ".parquet" else _text_schema(path, source, required)
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error
        missing = [name for name in required if name not in schema.names]
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(missing)} (columns found: {', '.join(schema.names)})",
                remedy=f"give a file with columns {', '.join(required)}",
            )
        return cls(path, schema)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields the rows in order, a bounded number at a time.

        Raises:
            DataError: The file is damaged.
        """
        try:
            if self.path.suffix == ".parquet":
                with open_input(self.path) as source, pq.ParquetFile(source) as file:
                    yield from file.iter_batches(_BATCH_ROWS)
            elif self.schema.names:
                yield from self._text_batches()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"cannot read all of {self.path}: {error}") from error

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Returns some columns of all rows.

        Raises:
            EmptyDataError: The file has no rows.
            DataError: A value is null.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        table = pa.Table.from_batches([batch.select(columns) for batch in self.batches()], schema)
        if not table.num_rows:
            raise EmptyDataError(f"{self.path} has no rows", remedy="give at least one")
        for name in columns:
            check_no_nulls(table[name], f"{self.path}, column {name}")
        return table

    def _text_batches(self) -> Iterator[pa.RecordBatch]:
        has_header = self.path.suffix != ".txt" or _first_line(self.path) == self.schema.names[0]
        read = pacsv.ReadOptions(column_names=self.schema.names, skip_rows=int(has_header))
        parse = pacsv.ParseOptions(delimiter="\t" if self.path.suffix == ".txt" else ",")
        convert = pacsv.ConvertOptions(column_types=self.schema)
        try:
            with open_input(self.path) as source, pacsv.open_csv(source, read, parse, convert) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            if "Empty CSV file" not in str(error):
                raise


def check_ending(path: LocationLike, endings: Sequence[str]) -> None:
    """Checks a file's ending.

    Raises:
        DataError: It is not one of `endings`.
    """
    ending = Location.of(path).suffix
    if ending not in endings:
        raise DataError(
            f"{path} has {f'ending {ending!r}' if ending else 'no ending'}",
            remedy=f"give a file that ends in {' or '.join(endings)}",
        )


def check_no_nulls(column: pa.ChunkedArray, source: str) -> None:
    """Checks that a column has a value in every row.

    Raises:
        DataError: A value is null; the message names `source` and the first such row.
    """
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise DataError(
            f"{source}: {column.null_count} nulls, the first in row {row + 1}", remedy="give a value in every row"
        )


def write_table_file(path: LocationLike, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Writes batches to a Parquet or CSV file and returns the number of rows.

    An existing file is replaced once all batches have been written, or not at all.

    Args:
        path: Ends with .parquet or .csv; its folder is created.
        schema: Schema of every batch.
        batches: Consumed one at a time.
    """
    location, num_rows = Location.of(path), 0
    with written_file(location) as unfinished, _open_writer(unfinished, location.suffix, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows


def _first_line(path: Location) -> str:
    with open_input(path) as source:
        return _read_line(source).decode("utf8").strip()


def _read_line(source: pa.NativeFile) -> bytes:
    line: bytes = io.TextIOWrapper(source, "latin1", newline="\n").readline().encode("latin1")
    return line


def _text_schema(path: Location, source: pa.NativeFile, required: Sequence[str]) -> pa.Schema:
    if path.suffix == ".txt":
        return pa.schema([(required[0], pa.string())])
    header = _read_line(source)
    names = pacsv.read_csv(pa.py_buffer(header)).column_names if header.strip() else []
    return pa.schema([(name, pa.string()) for name in names])


def _open_writer(path: Path, ending: str, schema: pa.Schema) -> pq.ParquetWriter | pacsv.CSVWriter:
    if ending == ".parquet":
        return pq.ParquetWriter(path, schema, compression="zstd")
    assert ending == ".csv", ending
    return pacsv.CSVWriter(path, schema, write_options=pacsv.WriteOptions(quoting_style="needed"))
