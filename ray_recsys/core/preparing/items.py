"""The distinct items of a log: found by hash partitions of items, coded, counted, joined with the side file, written.

An item's code is its rank in the order of ids (integers by value, texts by UTF-8 bytes): it depends on the ids alone.
Tasks do it all; one of them needs memory for the log's items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_recsys.config import ItemsRecipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.artifact import FileDigest, digest_file
from ray_recsys.core.exchange import Exchange, Handle
from ray_recsys.core.preparing.checking import IdKind, cast_ids
from ray_recsys.core.preparing.counting import ItemTotals, training_counts
from ray_recsys.core.preparing.ids import PackedIds, ranked
from ray_recsys.core.preparing.log_files import LogFile, iter_line_blocks, list_log_files
from ray_recsys.core.preparing.log_reader import open_parquet
from ray_recsys.core.preparing.log_text import parse_block, text_layout
from ray_recsys.errors import DataError
from ray_recsys.storage.files import written_file
from ray_recsys.storage.location import Location

BLOCKS_PER_ITEM_PART = 32
"""Blocks of the log for each hash partition of items, and those whose codes travel as one part."""
_MERGED_AT_ONCE = 4_000_000
_MOVIELENS_COLUMNS = ("item_id", "title", "category")


@dataclass(frozen=True, slots=True)
class LogItems:
    """The items of a log."""

    num_items: int
    ids: Handle
    """PackedIds in order of codes."""
    codes: list[Handle]
    """Of each block, the log's codes of its items, int32."""


def num_item_parts(num_chunks: int) -> int:
    """Returns the number of hash partitions of items for a log; the result does not depend on it."""
    return max(1, num_chunks // BLOCKS_PER_ITEM_PART)


def find_items(items: Sequence[tuple[Handle, ...]], kind: IdKind, exchange: Exchange) -> LogItems:
    """Merges the items of all blocks; `items` has a part for each hash partition of items of each block."""
    stage = "merging the items of the log"
    num_parts = len(items[0])
    size = BLOCKS_PER_ITEM_PART if num_parts > 1 else 1
    groups = [range(start, min(start + size, len(items))) for start in range(0, len(items), size)]
    inputs = [[block[part] for block in items] for part in range(num_parts)]
    merged = exchange.run(_MergeItems(kind, None if num_parts == 1 else size), inputs, 1 + len(groups), stage=stage)
    if num_parts == 1:
        return LogItems(merged[0].report, merged[0].parts[0], list(merged[0].parts[1:]))
    (ordered,) = exchange.run(_order_parts, [[left.parts[0] for left in merged]], 1 + num_parts, stage=stage)
    codes = exchange.run_generators(
        _join_codes,
        [[*ordered.parts[1:], *(left.parts[1 + group] for left in merged)] for group in range(len(groups))],
        1,
        stage=stage,
    )
    return LogItems(ordered.report, ordered.parts[0], [left.parts[0] for left in codes])


@dataclass(frozen=True, slots=True)
class _MergeItems:
    """Returns a hash partition's number of items; outputs their sorted ids, and their ranks for groups of blocks."""

    kind: IdKind
    group_size: int | None
    """Blocks of a group; None: this is the only partition, so the ranks are the codes, and each block has its own."""

    def __call__(self, _number: int, *blocks: PackedIds) -> tuple[int, Sequence[Any]]:
        merged = cast_ids(pa.array([], pa.string()), self.kind)
        codes: list[Int64s] = []
        waiting: list[pa.Array] = []
        for position, block in enumerate(blocks):
            waiting.append(cast_ids(block.array(), self.kind))
            if sum(map(len, waiting)) >= _MERGED_AT_ONCE or position == len(blocks) - 1:
                encoded = pa.concat_arrays([merged, *waiting]).dictionary_encode()
                ends = np.cumsum([len(merged), *map(len, waiting)])
                codes += np.split(encoded.indices.to_numpy(), ends)[1:-1]
                merged, waiting = encoded.dictionary, []
        rank, ids = ranked(merged)
        rank32 = rank.astype(np.int32)
        ranks = [rank32[of_block] for of_block in codes]
        if self.group_size is None:
            return len(ids), (PackedIds.of(ids), *ranks)
        groups = [ranks[start : start + self.group_size] for start in range(0, len(ranks), self.group_size)]
        return len(ids), (PackedIds.of(ids), *groups)


def _order_parts(_number: int, *parts: PackedIds) -> tuple[int, Sequence[Any]]:
    """Returns the number of items; outputs their sorted ids, and the rank of each hash partition's items."""
    rank, ids = ranked(pa.concat_arrays([part.array() for part in parts]))
    ends = np.cumsum([len(part) for part in parts])[:-1]
    return len(ids), (PackedIds.of(ids), *np.split(rank.astype(np.int32), ends))


def _join_codes(_number: int, *values: Any) -> Any:
    """Outputs the codes of each block of a group, given the partitions' ranks and then the ranks within each."""
    ranks, groups = values[: len(values) // 2], values[len(values) // 2 :]
    for block in zip(*groups, strict=True):
        yield None, (np.concatenate([rank[within] for rank, within in zip(ranks, block, strict=True)]),)


@dataclass(frozen=True, slots=True)
class WrittenItems:
    """The vocabulary of a prepared set."""

    num_in_side_file: int
    """Items that the side file has; 0 without one."""
    digest: FileDigest
    ids: Handle
    """PackedIds of all items of the log, in order of codes."""
    item_idx: Handle
    """Index of each item code, int32[I]; -1: not in the vocabulary."""


def write_vocabulary(
    location: Location, items: LogItems, totals: ItemTotals, side: pa.Table | None, exchange: Exchange
) -> WrittenItems:
    """Writes the item table of the items that occur in training, with what the side file has of them."""
    inputs = [[items.ids, *totals.ranges]]
    (left,) = exchange.run(partial(_write_vocabulary, location, side), inputs, 1, stage=f"writing {location}")
    return WrittenItems(*left.report, items.ids, left.parts[0])


def _write_vocabulary(
    location: Location,
    side: pa.Table | None,
    _number: int,
    ids: PackedIds,
    *ranges: Int64s,
) -> tuple[tuple[int, FileDigest], Sequence[Any]]:
    counts = training_counts(ranges)
    order = vocabulary_order(counts)
    item_idx = np.full(len(counts), -1, np.int32)
    item_idx[order] = np.arange(len(order), dtype=np.int32)
    item_ids = ids.array().take(pa.array(order))
    columns, num_missing = ({}, len(order)) if side is None else join_side_items(item_ids, side)
    with written_file(location, durable=False) as path:
        write_items(path, item_ids, counts[order], columns)
        digest = digest_file(path)
    return (len(order) - num_missing, digest), (item_idx,)


def vocabulary_order(counts: Int64s) -> Int64s:
    """Returns the codes of the items with training interactions, by descending count, ties by id."""
    order = np.argsort(-counts, kind="stable")
    return order[: np.count_nonzero(counts)]


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
