"""Blocks of text lines as tables of strings: CSV, TSV, MovieLens `::` and JSON lines; no malformed line is lost.

A record is a line, so that a file can be read from any byte on: a quoted field with a line end in it becomes malformed
rows (write such a log as Parquet first). The fast path is pyarrow's; a block that it cannot account for line by line is
read again by the standard library, which tells the bad lines apart. Values stay text: types are the business of
`interactions`.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from ray_recsys.config import InputRecipe, ItemsRecipe
from ray_recsys.core.preparing.log_files import Format, LogFile, open_stream
from ray_recsys.errors import DataError

LINE_BLOCK_BYTES = 32 << 20
_UNIT_SEPARATOR = "\x1f"  # stands for a separator of two characters
_SEPARATORS: dict[Format, str] = {"csv": ",", "tsv": "\t", "movielens": "::"}
_MAX_LINE_BYTES = 64 << 20
_READ_ON_BYTES = 64 << 10  # past a range's end, to complete its last line
_EXACT_BELOW = 2.0**53
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How the lines of one file become columns."""

    format: Format
    column_names: tuple[str, ...]
    has_header: bool
    separator: str
    encoding: str


@dataclass(frozen=True, slots=True)
class TextBlock:
    """The columns asked for, as strings (of JSON lines: as found), and the lines that are no records."""

    table: pa.Table
    malformed: list[str]


def text_layout(file: LogFile, recipe: InputRecipe | ItemsRecipe, default_names: Sequence[str]) -> TextLayout:
    """Returns a file's layout; reads its first line if that names the columns.

    Args:
        file: A text file.
        recipe: Its format section of the recipe.
        default_names: Columns of a MovieLens file, which has no header, unless the recipe names them.

    Raises:
        DataError: The file cannot be read, or its encoding has no one-byte line ends.
    """
    if "\n".encode(recipe.encoding) != b"\n":
        raise DataError(
            f"encoding {recipe.encoding} is not possible: its line ends are not one byte; convert {file.uri}"
        )
    separator = recipe.separator or _SEPARATORS.get(file.format, ",")
    names = recipe.column_names or (tuple(default_names) if file.format == "movielens" else ())
    has_header = file.format != "jsonl" and not names
    if file.format == "jsonl":
        names = _json_names(file)
    elif has_header:
        first = next(iter_line_blocks(file, 0, None, block_bytes=1 << 16), b"").split(b"\n", 1)[0]
        names = tuple(next(csv.reader([_decode(first, recipe.encoding).rstrip("\r")], delimiter=separator), ()))
    return TextLayout(file.format, names, has_header, separator, recipe.encoding)


def iter_line_blocks(
    file: LogFile, start: int, stop: int | None, *, block_bytes: int = LINE_BLOCK_BYTES
) -> Iterator[bytes]:
    """Yields the whole lines that begin in [start, stop) of a file, in blocks of about `block_bytes`.

    Raises:
        DataError: A line longer than 64 MiB, or damaged compression.
    """
    try:
        with open_stream(file, max(start - 1, 0)) as stream:
            yield from _line_blocks(stream, file, start, stop, block_bytes)
    except OSError as error:
        raise DataError(f"cannot read {file.uri}: {error}") from error


def _line_blocks(
    stream: pa.NativeFile, file: LogFile, start: int, stop: int | None, block_bytes: int
) -> Iterator[bytes]:
    position = max(start - 1, 0)  # of the next byte to read
    buffer = b""  # what was read and not yielded yet
    skip_first = start > 0  # the line that begins before `start` belongs to the range before
    while True:
        wanted = block_bytes if stop is None else min(block_bytes, max(stop - position, _READ_ON_BYTES))
        data: bytes = stream.read(wanted)
        buffer += data.removeprefix(_BYTE_ORDER_MARK) if position == 0 else data
        position += len(data)
        if skip_first:
            newline = buffer.find(b"\n")
            buffer = buffer[newline + 1 :] if newline >= 0 else b""
            skip_first = newline < 0
        begin = position - len(buffer)
        limit = None if stop is None else stop - begin
        end = 0 if skip_first else _complete_lines(buffer, limit, is_last=not data)
        if end:
            yield buffer[:end]
            buffer = buffer[end:]
        if not data or (stop is not None and position - len(buffer) >= stop):
            return
        if len(buffer) > _MAX_LINE_BYTES:
            raise DataError(f"{file.uri}: a line is longer than {_MAX_LINE_BYTES >> 20} MiB; is it a text file?")


def _complete_lines(buffer: bytes, limit: int | None, *, is_last: bool) -> int:
    """Returns the length of the whole lines at the buffer's start that begin before `limit`."""
    if limit is not None and limit <= 0:
        return 0
    if limit is not None and limit <= len(buffer) and (newline := buffer.find(b"\n", limit - 1)) >= 0:
        return newline + 1
    return len(buffer) if is_last else buffer.rfind(b"\n") + 1


def parse_block(data: bytes, layout: TextLayout, columns: Sequence[str], *, is_first: bool) -> TextBlock:
    """Returns the columns of a block of lines.

    Args:
        data: Whole lines.
        layout: Of their file.
        columns: Names to return; the layout has them.
        is_first: Whether the block begins with the file's header line, if there is one.
    """
    if is_first and layout.has_header:
        data = data.partition(b"\n")[2]
    text, undecodable = _to_utf8(data, layout.encoding)
    block = _parse_json(text, columns) if layout.format == "jsonl" else _parse_separated(text, layout, columns)
    return TextBlock(block.table, undecodable + block.malformed)


def _to_utf8(data: bytes, encoding: str) -> tuple[bytes, list[str]]:
    """Returns the lines that can be decoded, as UTF-8, and the others, escaped."""
    is_utf8 = encoding.lower().replace("-", "") in ("utf8", "ascii")
    try:
        text = data.decode("utf8" if is_utf8 else encoding)
        return (data if is_utf8 else text.encode()), []
    except UnicodeDecodeError:
        pass
    good, bad = [], []
    for line in data.split(b"\n"):
        try:
            good.append(line.decode(encoding).encode())
        except UnicodeDecodeError:
            bad.append(line.decode("ascii", "backslashreplace"))
    return b"\n".join(good), bad


def _parse_separated(data: bytes, layout: TextLayout, columns: Sequence[str]) -> TextBlock:
    separator, is_quoted = layout.separator, layout.format == "csv"
    if len(separator) > 1:
        data, separator = data.replace(separator.encode(), _UNIT_SEPARATOR.encode()), _UNIT_SEPARATOR
    invalid: list[str] = []

    def skip(row: Any) -> str:
        invalid.append(row.text or "")
        return "skip"

    num_lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if not data.strip(b"\r\n"):
        return TextBlock(_strings({name: [] for name in columns}), [])
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=len(data) + 1, column_names=_unique(layout.column_names)
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator, quote_char='"' if is_quoted else False, invalid_row_handler=skip
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(columns),
                column_types=dict.fromkeys(columns, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid:
        table = None
    if table is None or table.num_rows + len(invalid) != num_lines:
        return _parse_separated_slowly(data.decode(), separator, is_quoted, layout.column_names, columns)
    return TextBlock(table, invalid)


def _parse_separated_slowly(
    text: str, separator: str, is_quoted: bool, names: Sequence[str], columns: Sequence[str]
) -> TextBlock:
    places = [names.index(name) for name in columns]
    rows, malformed = [], []
    for line in text.split("\n"):
        line = line.removesuffix("\r")  # noqa: PLW2901 (a Windows line end is no part of the record)
        if not line:
            continue
        try:
            fields = _fields(line, separator, is_quoted)
        except csv.Error:
            fields = []
        if len(fields) == len(names):
            rows.append([fields[place] or None for place in places])
        else:
            malformed.append(line)
    return TextBlock(_strings({name: [row[i] for row in rows] for i, name in enumerate(columns)}), malformed)


def _fields(line: str, separator: str, is_quoted: bool) -> list[str]:
    return next(csv.reader([line], delimiter=separator, strict=True)) if is_quoted else line.split(separator)


def _parse_json(data: bytes, columns: Sequence[str]) -> TextBlock:
    num_lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if not data.strip():
        return TextBlock(_strings({name: [] for name in columns}), [])
    try:
        table = _read_json(data, [])
        # pyarrow makes times of texts that look like times, ids among them: such columns stay text.
        guessed = [field.name for field in table.schema if pa.types.is_timestamp(field.type)]
        if guessed:
            table = _read_json(data, guessed)
    except pa.ArrowInvalid:
        table = None
    if table is None or table.num_rows != num_lines or not all(_is_plain(table, name) for name in columns):
        return _parse_json_slowly(data.decode(), columns)
    return TextBlock(table.select(columns), [])


def _read_json(data: bytes, text_columns: Sequence[str]) -> pa.Table:
    schema = pa.schema([(name, pa.string()) for name in text_columns]) if text_columns else None
    return pyarrow.json.read_json(
        pa.BufferReader(data),
        read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema),
    )


def _is_plain(table: pa.Table, name: str) -> bool:
    """Whether a column is there and of a type that holds every value as it was written."""
    if name not in table.column_names:
        return False
    dtype = table.schema.field(name).type
    if pa.types.is_float64(dtype):  # whole numbers among them are exact below this
        return not pc.any(pc.greater_equal(pc.abs(table[name]), _EXACT_BELOW)).as_py()
    return bool(pa.types.is_int64(dtype) or pa.types.is_string(dtype))


def _parse_json_slowly(text: str, columns: Sequence[str]) -> TextBlock:
    rows, malformed = [], []
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        values = [record.get(name) for name in columns] if isinstance(record, dict) else [[]]
        if all(value is None or type(value) in (int, float, str) for value in values):
            rows.append(values)
        else:
            malformed.append(line)
    return TextBlock(
        pa.table({name: _json_column([row[i] for row in rows]) for i, name in enumerate(columns)}), malformed
    )


def _json_column(values: list[Any]) -> pa.Array:
    """Returns numbers as pyarrow's own reader types them; text where they are not all numbers, or lose digits so."""
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int, float}:
        try:
            return pa.array(values, pa.float64() if float in kinds else pa.int64())
        except (OverflowError, pa.ArrowInvalid):  # beyond 64 bits, or a whole number that no float64 is
            pass
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _json_names(file: LogFile) -> tuple[str, ...]:
    """Returns the keys of the records among a file's first lines."""
    names: dict[str, None] = {}
    first = next(iter_line_blocks(file, 0, None, block_bytes=1 << 20), b"")
    for line in first.split(b"\n")[:1000]:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            names.update(dict.fromkeys(record))
    return tuple(names)


def _unique(names: Sequence[str]) -> list[str]:
    """Returns the names with repeated ones told apart, because pyarrow wants them so."""
    return [name if name not in names[:i] else f"{name}#{i}" for i, name in enumerate(names)]


def _strings(columns: dict[str, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _decode(data: bytes, encoding: str) -> str:
    return data.decode(encoding, "replace")
