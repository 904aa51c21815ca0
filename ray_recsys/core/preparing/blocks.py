"""First pass of prepare: chunks of a log → blocks of good rows, in order of their users' hash buckets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.config import InputRecipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.exchange import Exchange, Handle
from ray_recsys.core.preparing.checking import (
    MAX_EXAMPLES,
    PLACE,
    CheckedRows,
    DropLog,
    IdColumn,
    IdKind,
    check_rows,
    merge_kinds,
)
from ray_recsys.core.preparing.ids import NUM_BUCKETS, PackedIds, bucket_of, hash_ids
from ray_recsys.core.preparing.log_reader import LogBlock, LogChunk, iter_blocks
from ray_recsys.core.preparing.rows import TEST, TRAINING
from ray_recsys.core.preparing.timestamps import MICROSECONDS

_TIME_UNITS_US = (MICROSECONDS, 1_000, 1)  # coarsest first


@dataclass(frozen=True, slots=True)
class Block:
    """Rows in order of their users' buckets: of a part of the log, or what it has for a range of buckets."""

    columns: Mapping[str, npt.NDArray[Any]]
    """`user` and `item` (codes), `time_us`, `rating`, `label`; the last three only if the log has them."""
    users: PackedIds
    """The ids behind the codes of users, in order of buckets."""
    first_bucket: int
    row_starts: Int64s
    """Where each bucket starts among the rows and, last, their number."""
    user_starts: Int64s

    @property
    def num_bytes(self) -> int:
        """Size in memory."""
        return sum(values.nbytes for values in self.columns.values()) + self.users.num_bytes

    def cut(self, first: int, end: int, item_codes: Int32s | None) -> "Block":
        """Returns the rows of a range of buckets.

        Args:
            first: First bucket.
            end: Bucket after the last.
            item_codes: The log's code of each of the block's items; None if the rows have it already.
        """
        begin, stop = first - self.first_bucket, end - self.first_bucket
        rows = slice(int(self.row_starts[begin]), int(self.row_starts[stop]))
        users = slice(int(self.user_starts[begin]), int(self.user_starts[stop]))
        columns = {name: values[rows] for name, values in self.columns.items()}
        columns["user"] = columns["user"] - columns["user"].dtype.type(users.start)
        if item_codes is not None:
            columns["item"] = item_codes[columns["item"]]
        return Block(
            columns,
            self.users.cut(users.start, users.stop),
            first,
            self.row_starts[begin : stop + 1] - rows.start,
            self.user_starts[begin : stop + 1] - users.start,
        )


@dataclass(frozen=True, slots=True)
class LogSummary:
    """Summary of a block, a chunk or a whole log; small, whatever their size."""

    rows_in: int = 0
    rows_kept: int = 0
    num_bytes: int = 0
    """Of the blocks."""
    user_kind: IdKind = "integer"
    item_kind: IdKind = "integer"
    time_unit_us: int = MICROSECONDS
    """Coarsest of 1 s, 1 ms, 1 us of which every time is a multiple."""
    time_range_us: tuple[int, int] | None = None
    """First and last time; None without times."""
    drops: DropLog = field(default_factory=DropLog)

    @classmethod
    def of_block(cls, rows: CheckedRows, num_bytes: int) -> Self:
        """Returns the summary of a block with at least one good row."""
        times = rows.time_us
        return cls(
            rows_in=len(rows) + rows.drops.total,
            rows_kept=len(rows),
            num_bytes=num_bytes,
            user_kind=rows.users.kind,
            item_kind=rows.items.kind,
            time_unit_us=MICROSECONDS if times is None else _time_unit_us(times),
            time_range_us=None if times is None else (int(times.min()), int(times.max())),
            drops=rows.drops,
        )

    @classmethod
    def merged(cls, parts: Sequence[Self]) -> Self:
        """Returns the summary of consecutive parts of a log."""
        ranges = [part.time_range_us for part in parts if part.time_range_us is not None]
        return cls(
            rows_in=sum(part.rows_in for part in parts),
            rows_kept=sum(part.rows_kept for part in parts),
            num_bytes=sum(part.num_bytes for part in parts),
            user_kind=merge_kinds([part.user_kind for part in parts]),
            item_kind=merge_kinds([part.item_kind for part in parts]),
            time_unit_us=min((part.time_unit_us for part in parts), default=MICROSECONDS),
            time_range_us=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
            drops=DropLog.merged(part.drops for part in parts),
        )


@dataclass(frozen=True, slots=True)
class ReadLog:
    """A log in blocks."""

    summary: LogSummary
    blocks: list[Handle]
    items: list[tuple[Handle, ...]]
    """Of each block, the ids behind the codes of items: a part for each hash partition of items."""


def read_log(chunks: Sequence[LogChunk], recipe: InputRecipe, num_item_parts: int, exchange: Exchange) -> ReadLog:
    """Reads, checks and packs the chunks of a log, one task per chunk.

    Raises:
        DataError: A file is damaged, or a column's type does not fit its role in the recipe.
    """
    left = exchange.run_generators(
        _ReadChunk(tuple(chunks), recipe, num_item_parts),
        [()] * len(chunks),
        1 + num_item_parts,
        stage="reading the log",
        describe=lambda number: chunks[number].describe(),
    )
    summary = LogSummary.merged([block.report for block in left])
    good = [block.parts for block in left if block.report.rows_kept]
    return ReadLog(summary, [parts[0] for parts in good], [parts[1:] for parts in good])


@dataclass(frozen=True, slots=True)
class _ReadChunk:
    """Yields the summary of each block of a chunk with (the block, its items for each hash partition of items)."""

    chunks: tuple[LogChunk, ...]
    recipe: InputRecipe
    num_item_parts: int

    def __call__(self, number: int) -> Iterator[tuple[LogSummary, Sequence[Any]]]:
        chunk, label = self.chunks[number], None
        if any(other.file.is_test for other in self.chunks):
            label = TEST if chunk.file.is_test else TRAINING
        for read in iter_blocks(chunk, self.recipe):
            checked = _check(read, chunk, self.recipe)
            if len(checked):
                block, *items = pack_block(checked, label, self.num_item_parts)
                yield LogSummary.of_block(checked, block.num_bytes), (block, *items)
            else:
                nothing = LogSummary(rows_in=checked.drops.total, drops=checked.drops)
                yield nothing, (None,) * (1 + self.num_item_parts)


def _check(block: LogBlock, chunk: LogChunk, recipe: InputRecipe) -> CheckedRows:
    is_text_file = chunk.layout is not None and chunk.file.format != "jsonl"
    checked = check_rows(block.table, recipe, is_text_file=is_text_file, source=chunk.file.uri)
    lines = [{"line": line[:1000], PLACE: chunk.file.uri} for line in block.malformed[:MAX_EXAMPLES]]
    checked.drops.add("malformed_row", len(block.malformed), lines)
    return checked


def _time_unit_us(times: Int64s) -> int:
    return next(unit for unit in _TIME_UNITS_US if unit == 1 or not (times % unit).any())


def pack_block(rows: CheckedRows, label: int | None = None, num_item_parts: int = 1) -> tuple[Any, ...]:
    """Returns (the block, the ids of its items in each hash partition of items).

    Args:
        rows: At least one.
        label: Of the rows, if the split is given.
        num_item_parts: Number of hash partitions; codes of items count through all of them.
    """
    users, user_starts = _in_bucket_order(rows.users)
    items, item_parts = _by_hash(rows.items, num_item_parts)
    codes = users.codes.astype(np.uint16 if len(users.dictionary) <= 1 << 16 else np.uint32)
    row_buckets = np.repeat(np.arange(NUM_BUCKETS, dtype=np.uint16), np.diff(user_starts))[codes]
    order = np.argsort(row_buckets, kind="stable")
    columns: dict[str, npt.NDArray[Any]] = {"user": codes[order], "item": items[order]}
    if rows.time_us is not None:
        columns["time_us"] = rows.time_us[order]
    if rows.rating is not None:
        columns["rating"] = rows.rating[order]
    if label is not None:
        columns["label"] = np.full(len(order), label, np.int8)
    block = Block(columns, PackedIds.of(users.dictionary), 0, _bucket_starts(row_buckets), user_starts)
    return block, *item_parts


def _in_bucket_order(users: IdColumn) -> tuple[IdColumn, Int64s]:
    """Returns the ids with their dictionary in order of buckets, and where each bucket starts in it."""
    buckets = bucket_of(hash_ids(users.dictionary))
    order = np.argsort(buckets, kind="stable")
    new_codes = np.empty(len(order), np.int32)
    new_codes[order] = np.arange(len(order), dtype=np.int32)
    ordered = IdColumn(new_codes[users.codes], users.dictionary.take(pa.array(order)), users.kind)
    return ordered, _bucket_starts(buckets)


def _by_hash(items: IdColumn, num_parts: int) -> tuple[Int32s, list[PackedIds]]:
    """Returns each row's code with the dictionary in order of hash partitions, and the partitions' ids."""
    if num_parts == 1:
        return items.codes, [PackedIds.of(items.dictionary)]
    parts = hash_ids(items.dictionary) % np.uint64(num_parts)
    order = np.argsort(parts, kind="stable")
    new_codes = np.empty(len(order), np.int32)
    new_codes[order] = np.arange(len(order), dtype=np.int32)
    ids = PackedIds.of(items.dictionary.take(pa.array(order)))
    starts = np.concatenate([[0], np.cumsum(np.bincount(parts.astype(np.int64), minlength=num_parts))])
    cut = [ids.cut(int(start), int(stop)) for start, stop in pairwise(starts)]
    return new_codes[items.codes], cut


def _bucket_starts(buckets: npt.NDArray[np.uint16]) -> Int64s:
    """Returns where each bucket starts among values in order of buckets and, last, their number."""
    return np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=NUM_BUCKETS))])
