"""The distinct items of a log: merged from its staging blocks, coded, joined with the side file, written as a table.

An item's code is its rank in the order of ids (integers by value, texts by UTF-8 bytes): it depends on the ids alone.
Needs memory for the items of the log and of a few blocks at once.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_recsys.config import ItemsRecipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.files import read_arrow, write_array, write_arrow
from ray_recsys.core.preparing.checking import IdKind, cast_ids
from ray_recsys.core.preparing.log_files import LogFile, iter_line_blocks, list_log_files
from ray_recsys.core.preparing.log_reader import open_parquet
from ray_recsys.core.preparing.log_text import parse_block, text_layout
from ray_recsys.errors import DataError

ITEM_IDS = "item_ids.arrow"
_RANKS = "item_ranks.npy"
_MERGED_AT_ONCE = 4_000_000
_MOVIELENS_COLUMNS = ("item_id", "title", "category")


def merge_items(blocks: Sequence[str], kind: IdKind, staging: Path) -> pa.Array:
    """Returns the distinct item ids in order; writes the files that `ItemCodes` reads into the blocks."""
    merged = cast_ids(pa.array([], pa.string()), kind)
    waiting: list[tuple[str, pa.Array]] = []
    for name in blocks:
        waiting.append((name, cast_ids(read_arrow(staging / name / "items.arrow")["id"].combine_chunks(), kind)))
        if sum(len(ids) for _, ids in waiting) >= _MERGED_AT_ONCE:
            merged = _merge(merged, waiting, staging)
            waiting = []
    merged = _merge(merged, waiting, staging)
    order = pc.sort_indices(merged)
    ranks = np.empty(len(order), np.int32)
    ranks[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    write_array(ranks, staging / _RANKS)
    ids = merged.take(order)
    write_arrow(pa.table({"id": ids}), staging / ITEM_IDS)
    return ids


def _merge(merged: pa.Array, waiting: Sequence[tuple[str, pa.Array]], staging: Path) -> pa.Array:
    """Appends the new ids of blocks in order of appearance; writes each block's positions of its ids in the result."""
    encoded = pa.concat_arrays([merged, *(ids for _, ids in waiting)]).dictionary_encode()
    codes = encoded.indices.to_numpy()
    start = len(merged)
    for name, ids in waiting:
        write_array(codes[start : start + len(ids)], staging / name / "item_codes.npy")
        start += len(ids)
    return encoded.dictionary


class ItemCodes:
    """Item codes of the rows of any block."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self._ranks: Int32s = np.load(staging / _RANKS, mmap_mode="r")

    def of_rows(self, block: str, local_codes: Int32s) -> Int32s:
        """Returns the log-wide item code of each row of a block, given its code in the block's own dictionary."""
        positions = np.load(self._staging / block / "item_codes.npy", mmap_mode="r")
        codes: Int32s = self._ranks[positions[local_codes]]
        return codes


def vocabulary_order(training_counts: Int64s) -> Int64s:
    """Returns the codes of the items with training interactions, by descending count, ties by id."""
    order = np.argsort(-training_counts, kind="stable")
    return order[: np.count_nonzero(training_counts)]


def write_items(path: Path, ids: pa.Array, counts: Int64s, side_columns: dict[str, pa.Array]) -> None:
    """Writes the item table of a prepared set, one row per item in order of index."""
    columns = {"item_idx": pa.array(np.arange(len(ids)), pa.int32()), "item_id": ids, "count": pa.array(counts)}
    pq.write_table(pa.table({**columns, **side_columns}), path, compression="zstd", compression_level=1)


def read_side_items(uri: str, recipe: ItemsRecipe) -> pa.Table:
    """Returns the side file as text columns item_id, title and category; the last two only where the recipe has them.

    Raises:
        DataError: A file or column is missing, a row is malformed or has no id, or an id is repeated.
    """
    wanted = {"item_id": recipe.id_column, "title": recipe.title_column, "category": recipe.category_column}
    columns = {name: column for name, column in wanted.items() if column is not None}
    parts = [_read_file(file, recipe, list(columns.values())) for file in list_log_files([uri], recipe.format)]
    table = pa.concat_tables([_as_text(part, columns) for part in parts]).combine_chunks()
    ids = table["item_id"]
    if ids.null_count:
        raise DataError(f"{uri}: {ids.null_count} rows have no {recipe.id_column!r}", remedy="give every item its id")
    counts = pc.value_counts(ids)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated):
        shown = ", ".join(map(repr, repeated[:5].to_pylist()))
        raise DataError(
            f"{uri}: {len(repeated)} ids occur more than once, e.g. {shown}", remedy="keep one row per item"
        )
    return table


def join_side_items(item_ids: pa.Array, side: pa.Table) -> tuple[dict[str, pa.Array], int]:
    """Returns the title and category of each item, null where the side file lacks it, and how many items it lacks."""
    rows = pc.index_in(item_ids.cast(pa.string()), value_set=side["item_id"].combine_chunks())
    names = [name for name in side.column_names if name != "item_id"]
    return {name: side[name].combine_chunks().take(rows) for name in names}, rows.null_count


def _read_file(file: LogFile, recipe: ItemsRecipe, columns: list[str]) -> pa.Table:
    if file.format == "parquet":
        with open_parquet(file) as parquet:
            _check_columns(file, columns, parquet.schema_arrow.names)
            return parquet.read(columns=list(dict.fromkeys(columns)))
    layout = text_layout(file, recipe, _MOVIELENS_COLUMNS)
    _check_columns(file, columns, layout.column_names)
    tables = []
    for number, data in enumerate(iter_line_blocks(file, 0, None)):
        block = parse_block(data, layout, list(dict.fromkeys(columns)), is_first=number == 0)
        if block.malformed:
            raise DataError(
                f"{file.uri}: {len(block.malformed)} malformed rows, e.g. {block.malformed[0][:200]!r}",
                remedy="give every row as many fields as there are columns",
            )
        tables.append(block.table)
    if not tables:
        raise DataError(f"{file.uri} has no rows", remedy="give one row per item")
    return pa.concat_tables(tables, promote_options="permissive")


def _check_columns(file: LogFile, columns: list[str], found: tuple[str, ...] | list[str]) -> None:
    for name in columns:
        if name not in found:
            raise DataError(
                f"{file.uri} has no column {name!r} (columns found: {', '.join(found)})",
                remedy="name the file's columns in the recipe's [items] section ('none' for no title or category)",
            )


def _as_text(table: pa.Table, columns: dict[str, str]) -> pa.Table:
    return pa.table({name: _text(table[column]) for name, column in columns.items()})


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) and pc.all(pc.equal(column, pc.floor(column))).as_py() is not False:
        column = column.cast(pa.int64())
    try:
        return column.cast(pa.string())
    except pa.ArrowNotImplementedError:
        raise DataError(f"a column of the side file has type {column.type}", remedy="convert it to text") from None
