"""The files of an interaction log: found, opened, identified; local paths and every URI that pyarrow or fsspec opens.

Knows nothing of what is inside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from ray_recsys.errors import DataError

Format = Literal["parquet", "csv", "tsv", "movielens", "jsonl"]
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


@dataclass(frozen=True, slots=True)
class LogFile:
    """One file: where it is, how it is written, and what tells it from another content."""

    uri: str
    format: Format
    compression: str | None
    bytes: int
    version: str
    """Time of the last change, where the filesystem knows it."""


def list_log_files(inputs: Sequence[str], file_format: Format | Literal["auto"]) -> list[LogFile]:
    """Returns the files at the given paths, folders (with their subfolders) and URIs, in order of their names.

    Hidden files, and in a folder also files of an unknown ending under `auto`, are passed over.

    Raises:
        DataError: A path with nothing there, an ending that says no format, or no file at all.
    """
    files = {file.uri: file for given in inputs for file in _list_one(given, file_format)}
    if not files:
        raise DataError(f"no log file at {', '.join(inputs) or '--input'}; give at least one file")
    return [files[uri] for uri in sorted(files)]


def resolve_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """Returns the filesystem of a path or URI and the path inside it.

    Raises:
        DataError: A scheme that neither pyarrow nor fsspec knows.
    """
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        filesystem, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    else:
        return filesystem, path
    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise DataError(f"cannot open {uri}: {error}; give a path or a URI that pyarrow or fsspec opens") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path


def open_stream(file: LogFile, start: int = 0) -> pa.NativeFile:
    """Opens a file for reading from a byte on; a compressed one decompressed, from its beginning."""
    filesystem, path = resolve_filesystem(file.uri)
    if file.compression:
        return filesystem.open_input_stream(path, compression=file.compression)
    opened = filesystem.open_input_file(path)
    opened.seek(start)
    return opened


def _list_one(given: str, file_format: Format | Literal["auto"]) -> list[LogFile]:
    filesystem, path = resolve_filesystem(given)
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise DataError(f"cannot look at {given}: {error}") from error
    if info.type == pafs.FileType.NotFound:
        raise DataError(f"{given} does not exist; give an existing file, folder or URI as --input")
    if info.is_file:
        return [_log_file(given if "://" in given else path, info, file_format)]
    found = filesystem.get_file_info(pafs.FileSelector(path, recursive=True))
    inner = [(i, PurePosixPath(i.path).relative_to(PurePosixPath(path))) for i in found if i.is_file]
    visible = [(i, name) for i, name in inner if not any(part[0] in "._" for part in name.parts)]
    known = [(i, name) for i, name in visible if file_format != "auto" or _format_of(i.path) is not None]
    if not known:
        raise DataError(
            f"folder {given} has no log file ({', '.join(_ENDINGS)}); set input.format to read other endings"
        )
    root, question, query = (given if "://" in given else path).partition("?")
    return [_log_file(f"{root.rstrip('/')}/{name}{question}{query}", i, file_format) for i, name in known]


def _log_file(uri: str, info: pafs.FileInfo, file_format: Format | Literal["auto"]) -> LogFile:
    chosen = _format_of(info.path) if file_format == "auto" else file_format
    if chosen is None:
        raise DataError(f"{uri}: unknown ending; known are {', '.join(_ENDINGS)}; or set input.format")
    compression = _COMPRESSED.get(PurePosixPath(info.path).suffix) if chosen != "parquet" else None
    return LogFile(uri, chosen, compression, info.size or 0, str(info.mtime_ns or ""))


def _format_of(path: str) -> Format | None:
    suffixes = [s for s in PurePosixPath(path).suffixes if s not in _COMPRESSED]
    return _ENDINGS.get(suffixes[-1].lower()) if suffixes else None
