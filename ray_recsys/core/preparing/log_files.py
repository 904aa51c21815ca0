"""The files of an interaction log: listed, opened, read as complete lines; local, or URIs of pyarrow or fsspec."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import pyarrow as pa
import pyarrow.fs as pafs

from ray_recsys.errors import AccessError, DataError
from ray_recsys.storage.location import Location, resolve_uri

Format = Literal["parquet", "csv", "tsv", "movielens", "jsonl", "user_lines"]
_ENDINGS: dict[str, Format] = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".data": "tsv",
    ".dat": "movielens",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
LINE_BLOCK_BYTES = 32 << 20
_MAX_LINE_BYTES = 64 << 20
_READ_AHEAD_BYTES = 64 << 10  # beyond a range's end, to complete its last line
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file: its location, its format, and what identifies its content."""

    uri: str
    format: Format
    compression: str | None
    bytes: int
    version: str
    """Time of the last modification in nanoseconds; empty where the filesystem has none."""
    is_test: bool = False
    """Whether its rows are the test; only with a given split."""


def list_log_files(inputs: Sequence[str], file_format: Format | Literal["auto"]) -> list[LogFile]:
    """Returns the files at the given paths, folders (recursively) and URIs, sorted by name.

    In folders, hidden files are skipped, and under `auto` also files of an unknown ending.

    Raises:
        DataError: A path does not exist, a file's ending implies no format, or there is no file at all.
    """
    files = {file.uri: file for given in inputs for file in _list_one(given, file_format)}
    if not files:
        raise DataError(f"no log file at {', '.join(inputs) or '--input'}", remedy="give at least one file")
    return [files[uri] for uri in sorted(files)]


def resolve_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the filesystem of a path or URI and the path inside it.

    Raises:
        DataError: Neither pyarrow nor fsspec supports the URI's scheme.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    if uri.startswith("s3://"):
        return Location.of(uri).resolve()
    try:
        return resolve_uri(uri)
    except AccessError as error:
        raise DataError(error.message, remedy=error.remedy) from error


def open_stream(file: LogFile, start: int = 0) -> pa.NativeFile:
    """Opens a file for reading from byte `start`; a compressed file is decompressed and read from its beginning."""
    filesystem, path = resolve_filesystem(file.uri)
    if file.compression:
        return filesystem.open_input_stream(path, compression=file.compression)
    opened = filesystem.open_input_file(path)
    opened.seek(start)
    return opened


def iter_line_blocks(
    file: LogFile, start: int, stop: int | None, *, block_bytes: int = LINE_BLOCK_BYTES
) -> Iterator[bytes]:
    """Yields the complete lines that begin in the byte range [start, stop) of a file, in blocks of about `block_bytes`.

    Raises:
        DataError: A line is longer than 64 MiB, or the file is damaged.
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
    buffer = b""  # read, but not yielded yet
    skip_first = start > 0  # a line that begins before `start` belongs to the preceding range
    while True:
        wanted = block_bytes if stop is None else min(block_bytes, max(stop - position, _READ_AHEAD_BYTES))
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
            raise DataError(
                f"{file.uri} has a line longer than {_MAX_LINE_BYTES >> 20} MiB", remedy="check that it is a text file"
            )


def _complete_lines(buffer: bytes, limit: int | None, *, is_last: bool) -> int:
    """Returns the length in bytes of the complete lines at the buffer's start that begin before `limit`."""
    if limit is not None and limit <= 0:
        return 0
    if limit is not None and limit <= len(buffer) and (newline := buffer.find(b"\n", limit - 1)) >= 0:
        return newline + 1
    return len(buffer) if is_last else buffer.rfind(b"\n") + 1


def _list_one(given: str, file_format: Format | Literal["auto"]) -> list[LogFile]:
    filesystem, path = resolve_filesystem(given)
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise DataError(f"cannot access {given}: {error}") from error
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{given} does not exist", remedy="give an existing file, folder or URI")
    if info.is_file:
        return [_log_file(given if "://" in given else path, info, file_format)]
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    inner = [(i, PurePosixPath(i.path).relative_to(PurePosixPath(path))) for i in found if i.is_file]
    visible = [(i, name) for i, name in inner if not any(part[0] in "._" for part in name.parts)]
    known = [(i, name) for i, name in visible if file_format != "auto" or _format_of(i.path) is not None]
    if not known:
        raise DataError(
            f"folder {given} has no log file ({', '.join(_ENDINGS)})", remedy="set input.format to read other endings"
        )
    root, question, query = (given if "://" in given else path).partition("?")
    return [_log_file(f"{root.rstrip('/')}/{name}{question}{query}", i, file_format) for i, name in known]


def _log_file(uri: str, info: pafs.FileInfo, file_format: Format | Literal["auto"]) -> LogFile:
    chosen = _format_of(info.path) if file_format == "auto" else file_format
    if chosen is None:
        raise DataError(
            f"{uri} has an unknown ending (known: {', '.join(_ENDINGS)})", remedy="set the format in the recipe"
        )
    compression = _COMPRESSED.get(PurePosixPath(info.path).suffix) if chosen != "parquet" else None
    return LogFile(uri, chosen, compression, info.size or 0, str(info.mtime_ns or ""))


def _format_of(path: str) -> Format | None:
    suffixes = [s for s in PurePosixPath(path).suffixes if s not in _COMPRESSED]
    return _ENDINGS.get(suffixes[-1].lower()) if suffixes else None
