"""An interaction log cut into chunks, and a chunk read as blocks of rows with the columns that the recipe needs."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.config import InputRecipe
from ray_recsys.core.preparing.log_files import LINE_BLOCK_BYTES, LogFile, iter_line_blocks, resolve_filesystem
from ray_recsys.core.preparing.log_text import TextLayout, parse_block, text_layout
from ray_recsys.errors import DataError

BLOCK_ROWS = 1 << 20
MOVIELENS_COLUMNS = ("user_id", "item_id", "rating", "timestamp")


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Part of a file that one task reads: [start, stop) counts bytes of a text file, row groups of a Parquet file."""

    file: LogFile
    start: int
    stop: int | None
    layout: TextLayout | None

    def describe(self) -> str:
        """Returns a description of the file and its part, for errors."""
        unit = "row groups" if self.layout is None else "bytes"
        return self.file.uri if self.stop is None else f"{self.file.uri}, {unit} {self.start:,} to {self.stop:,}"


@dataclass(frozen=True, slots=True)
class LogBlock:
    """Rows of a chunk, and the malformed lines among them."""

    table: pa.Table
    malformed: list[str]


def needed_columns(recipe: InputRecipe) -> list[str]:
    """Returns the distinct names of the columns that a recipe reads."""
    optional = [name for name in (recipe.timestamp_column, recipe.rating_column) if name is not None]
    rules = [rule.column for rule in recipe.drop]
    return list(dict.fromkeys([recipe.user_column, recipe.item_column, *optional, *rules]))


def plan_chunks(files: Sequence[LogFile], recipe: InputRecipe) -> list[LogChunk]:
    """Returns the chunks of a log in order of files; reads only footers and first lines.

    Raises:
        DataError: A file cannot be read, or lacks a column that the recipe names.
    """
    with ThreadPoolExecutor(16) as pool:  # bound by storage, not by the CPU
        return [chunk for chunks in pool.map(partial(_chunks_of, recipe=recipe), files) for chunk in chunks]


def iter_blocks(chunk: LogChunk, recipe: InputRecipe) -> Iterator[LogBlock]:
    """Yields the rows of a chunk in blocks of about a million, in the order of the file.

    Raises:
        DataError: The file is damaged.
    """
    if chunk.layout is None:
        yield from _iter_parquet(chunk, recipe)
        return
    columns = needed_columns(recipe)
    for number, data in enumerate(iter_line_blocks(chunk.file, chunk.start, chunk.stop)):
        parsed = parse_block(data, chunk.layout, columns, is_first=chunk.start == 0 and number == 0)
        yield LogBlock(parsed.table, parsed.malformed)


def _chunks_of(file: LogFile, recipe: InputRecipe) -> list[LogChunk]:
    if file.format != "parquet":
        is_pairs = file.format == "user_lines"
        layout = text_layout(file, recipe, (recipe.user_column, recipe.item_column) if is_pairs else MOVIELENS_COLUMNS)
        _check_columns(file, recipe, layout.column_names)
        if file.compression:
            return [LogChunk(file, 0, None, layout)]
        starts = range(0, max(file.bytes, 1), LINE_BLOCK_BYTES)
        return [LogChunk(file, start, start + LINE_BLOCK_BYTES, layout) for start in starts]
    with open_parquet(file) as parquet:
        _check_columns(file, recipe, parquet.schema_arrow.names)
        rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    chunks, start, gathered = [], 0, 0
    for group, num_rows in enumerate(rows):
        if gathered and gathered + num_rows > BLOCK_ROWS:
            chunks.append(LogChunk(file, start, group, None))
            start, gathered = group, 0
        gathered += num_rows
    return [*chunks, LogChunk(file, start, len(rows), None)]


def _check_columns(file: LogFile, recipe: InputRecipe, found: Sequence[str]) -> None:
    for name in needed_columns(recipe):
        if name not in found:
            raise DataError(
                f"{file.uri} has no column {name!r} (columns found: {', '.join(found) or 'none'})",
                remedy="name the log's columns in the recipe's [input] section",
            )


def open_parquet(file: LogFile, dictionary_columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Opens a Parquet file; `dictionary_columns` are read as dictionaries.

    Raises:
        DataError: It is not a Parquet file.
    """
    filesystem, path = resolve_filesystem(file.uri)
    try:
        return pq.ParquetFile(filesystem.open_input_file(path), read_dictionary=list(dictionary_columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"cannot read {file.uri} as Parquet: {error}") from error


def _iter_parquet(chunk: LogChunk, recipe: InputRecipe) -> Iterator[LogBlock]:
    columns = needed_columns(recipe)
    with open_parquet(chunk.file) as parquet:
        texts = [name for name in columns if _is_text(parquet.schema_arrow.field(name).type)]
    groups = range(chunk.start, chunk.stop or 0)
    with open_parquet(chunk.file, texts) as parquet:
        batches: list[pa.RecordBatch] = []
        try:
            for batch in parquet.iter_batches(BLOCK_ROWS, row_groups=groups, columns=columns, use_threads=False):
                # Batches end where a dictionary does: small ones are joined again.
                if batches and sum(b.num_rows for b in batches) + batch.num_rows > BLOCK_ROWS:
                    yield _one_block(batches)
                    batches = []
                batches.append(batch)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{chunk.file.uri} is damaged: {error}") from error
        if batches:
            yield _one_block(batches)


def _one_block(batches: Sequence[pa.RecordBatch]) -> LogBlock:
    return LogBlock(pa.Table.from_batches(batches).unify_dictionaries().combine_chunks(), [])


def _is_text(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_string(dtype) or pa.types.is_large_string(dtype))
