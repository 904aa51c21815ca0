"""Blocks of text lines as tables of strings: CSV, TSV, MovieLens `::`, JSON and user lines; no malformed line is lost.

A record is a line, so that reading can start at any byte: a quoted field that contains a line break becomes two
malformed rows (convert such a log to Parquet first). The fast path is pyarrow's; a block that it cannot account for
line by line is parsed again with the standard library, which identifies the malformed lines. Values stay text;
`checking` gives them types.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from ray_recsys.config.data import FileFormat
from ray_recsys.core.preparing.log_files import Format, LogFile, iter_line_blocks
from ray_recsys.errors import DataError

_UNIT_SEPARATOR = "\x1f"  # stands for a separator of two characters
_SEPARATORS: dict[Format, str] = {"csv": ",", "tsv": "\t", "movielens": "::", "user_lines": ""}
_HEADERLESS: tuple[Format, ...] = ("movielens", "user_lines")
_EXACT_BELOW = 2.0**53


@dataclass(frozen=True, slots=True)
class TextLayout:
    """Layout of one file's lines: separator and columns."""

    format: Format
    column_names: tuple[str, ...]
    has_header: bool
    separator: str
    encoding: str


@dataclass(frozen=True, slots=True)
class TextBlock:
    """The requested columns, as strings (from JSON lines: in their own types), and the malformed lines."""

    table: pa.Table
    malformed: list[str]


def text_layout(file: LogFile, file_format: FileFormat, default_names: Sequence[str]) -> TextLayout:
    """Returns a file's layout; reads its first line if that names the columns.

    Args:
        file: A text file.
        file_format: How the recipe says that it is written.
        default_names: Columns of a file without header (MovieLens, lines of users), unless the recipe names them.

    Raises:
        DataError: The file cannot be read, or its encoding does not end lines with a single byte.
    """
    if "\n".encode(file_format.encoding) != b"\n":
        raise DataError(
            f"{file.uri} cannot be read in encoding {file_format.encoding}, whose line ends are longer than one byte",
            remedy="convert the file to utf8",
        )
    separator = file_format.separator or _SEPARATORS.get(file.format, ",")
    names = file_format.column_names or (tuple(default_names) if file.format in _HEADERLESS else ())
    has_header = file.format != "jsonl" and not names
    if file.format == "jsonl":
        names = _json_names(file)
    elif has_header:
        first = next(iter_line_blocks(file, 0, None, block_bytes=1 << 16), b"").split(b"\n", 1)[0]
        names = tuple(next(csv.reader([_decode(first, file_format.encoding).rstrip("\r")], delimiter=separator), ()))
    return TextLayout(file.format, names, has_header, separator, file_format.encoding)


def parse_block(data: bytes, layout: TextLayout, columns: Sequence[str], *, is_first: bool) -> TextBlock:
    """Returns the columns of a block of lines.

    Args:
        data: Complete lines.
        layout: Layout of their file.
        columns: Names of the columns to return, all in the layout.
        is_first: Whether the block is the first of the file, which begins with the header if there is one.
    """
    if is_first and layout.has_header:
        data = data.partition(b"\n")[2]
    text, undecodable = _to_utf8(data, layout.encoding)
    if layout.format == "jsonl":
        block = _parse_json(text, columns)
    elif layout.format == "user_lines":
        block = TextBlock(_parse_user_lines(text, layout).select(columns), [])
    else:
        block = _parse_separated(text, layout, columns)
    return TextBlock(block.table, undecodable + block.malformed)


def _to_utf8(data: bytes, encoding: str) -> tuple[bytes, list[str]]:
    """Returns the decodable lines as UTF-8, and the others escaped."""
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
    positions = [names.index(name) for name in columns]
    rows, malformed = [], []
    for line in text.split("\n"):
        line = line.removesuffix("\r")  # noqa: PLW2901 (a Windows line end is not part of the record)
        if not line:
            continue
        try:
            fields = _fields(line, separator, is_quoted)
        except csv.Error:
            fields = []
        if len(fields) == len(names):
            rows.append([fields[position] or None for position in positions])
        else:
            malformed.append(line)
    return TextBlock(_strings({name: [row[i] for row in rows] for i, name in enumerate(columns)}), malformed)


def _fields(line: str, separator: str, is_quoted: bool) -> list[str]:
    return next(csv.reader([line], delimiter=separator, strict=True)) if is_quoted else line.split(separator)


def _parse_user_lines(data: bytes, layout: TextLayout) -> pa.Table:
    """Returns the pairs of lines `user item item ...`; a user without items is a pair without an item."""
    lines = pc.utf8_trim_whitespace(pa.array(data.decode().split("\n"), pa.string()))
    lines = lines.filter(pc.not_equal(lines, ""))
    split = pc.split_pattern(lines, layout.separator) if layout.separator else pc.utf8_split_whitespace(lines)
    fields, starts = split.flatten(), split.offsets.to_numpy()[:-1]
    lengths = np.diff(split.offsets.to_numpy())
    is_user = np.zeros(len(fields), np.bool_)
    is_user[starts] = True
    is_pair = ~is_user
    is_pair[starts[lengths == 1]] = True
    items = pa.array(np.flatnonzero(is_pair), mask=is_user[is_pair])
    users = pa.array(np.repeat(starts, np.maximum(lengths - 1, 1)))
    columns = [_empty_to_null(fields.take(rows)) for rows in (users, items)]
    return pa.table(dict(zip(layout.column_names, columns, strict=True)))


def _empty_to_null(texts: pa.Array) -> pa.Array:
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _parse_json(data: bytes, columns: Sequence[str]) -> TextBlock:
    num_lines = data.count(b"\n") + (not data.endswith(b"\n") and bool(data))
    if not data.strip():
        return TextBlock(_strings({name: [] for name in columns}), [])
    try:
        table = _read_json(data, [])
        # pyarrow converts texts that look like times, even ids: such columns are read again as text.
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
    """Returns whether a column exists and its type represents every value exactly."""
    if name not in table.column_names:
        return False
    dtype = table.schema.field(name).type
    if pa.types.is_float64(dtype):  # integers among the floats are exact below this
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
    """Returns numbers as pyarrow's reader types them, and text if a value is not a number or would lose digits."""
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {int, float}:
        try:
            return pa.array(values, pa.float64() if float in kinds else pa.int64())
        except (OverflowError, pa.ArrowInvalid):  # beyond 64 bits, or an integer that float64 cannot hold
            pass
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _json_names(file: LogFile) -> tuple[str, ...]:
    """Returns the keys of the records in a file's first lines."""
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
    """Returns the names with repeated ones made distinct, as pyarrow requires."""
    return [name if name not in names[:i] else f"{name}#{i}" for i, name in enumerate(names)]


def _strings(columns: dict[str, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _decode(data: bytes, encoding: str) -> str:
    return data.decode(encoding, "replace")
