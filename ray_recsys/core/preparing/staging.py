"""First pass of prepare: chunks of a log → staging blocks, whose rows are in order of their users' hash buckets.

A block is a folder of Arrow files: `rows` (codes of user and item, time, rating), `users` and `items` (the ids behind
the codes), and `buckets.npy` (where each bucket starts in rows and in users). Staging a chunk again gives the same
bytes, so a task may run twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.config import InputRecipe
from ray_recsys.core.arrays import Int64s, UInt64s, ranks_in_rows
from ray_recsys.core.counter_random import GOLDEN_GAMMA, splitmix64
from ray_recsys.core.executor import Executor, map_in_order
from ray_recsys.core.files import write_array, write_arrow
from ray_recsys.core.preparing.checking import (
    MAX_EXAMPLES,
    CheckedRows,
    DropLog,
    IdColumn,
    IdKind,
    check_rows,
    merge_kinds,
)
from ray_recsys.core.preparing.log_reader import LogBlock, LogChunk, iter_blocks
from ray_recsys.core.preparing.rows import TEST, TRAINING
from ray_recsys.core.preparing.timestamps import MICROSECONDS

NUM_BUCKETS = 4096
"""Fixed number of hash buckets of users; a partition is a range of buckets."""
_TIME_UNITS_US = (MICROSECONDS, 1_000, 1)  # coarsest first
_HASHED_AT_ONCE = 65_536  # ids whose work arrays stay in the cache


@dataclass(frozen=True, slots=True)
class StagedLog:
    """Summary of what was staged of a block, a chunk or a whole log; small, whatever their size."""

    rows_in: int = 0
    rows_kept: int = 0
    blocks: tuple[str, ...] = ()
    """Folder names."""
    user_kind: IdKind = "integer"
    item_kind: IdKind = "integer"
    time_unit_us: int = MICROSECONDS
    """Coarsest of 1 s, 1 ms, 1 us of which every time is a multiple."""
    time_range_us: tuple[int, int] | None = None
    """First and last time; None without times."""
    drops: DropLog = field(default_factory=DropLog)

    @classmethod
    def of_block(cls, name: str, rows: CheckedRows) -> Self:
        """Returns the summary of a block with at least one good row."""
        times = rows.time_us
        return cls(
            rows_in=len(rows) + rows.drops.total,
            rows_kept=len(rows),
            blocks=(name,),
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
            blocks=tuple(block for part in parts for block in part.blocks),
            user_kind=merge_kinds([part.user_kind for part in parts]),
            item_kind=merge_kinds([part.item_kind for part in parts]),
            time_unit_us=min((part.time_unit_us for part in parts), default=MICROSECONDS),
            time_range_us=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
            drops=DropLog.merged(part.drops for part in parts),
        )


def stage_log(chunks: Sequence[LogChunk], recipe: InputRecipe, staging: Path, executor: Executor) -> StagedLog:
    """Reads, checks and stages the chunks of a log, one task per chunk.

    Raises:
        DataError: A file is damaged, or a column's type does not fit its role in the recipe.
    """
    staging.mkdir()
    task = partial(stage_chunk, chunks, recipe, staging)
    return StagedLog.merged(map_in_order(executor, task, len(chunks), stage=f"reading the log into {staging}"))


def stage_chunk(chunks: Sequence[LogChunk], recipe: InputRecipe, staging: Path, number: int) -> StagedLog:
    """Reads, checks and stages one chunk; its number is part of the names of its blocks."""
    chunk, parts = chunks[number], []
    label = None
    if any(other.file.is_test for other in chunks):
        label = TEST if chunk.file.is_test else TRAINING
    for position, block in enumerate(iter_blocks(chunk, recipe)):
        checked = _check(block, chunk, recipe)
        if len(checked):
            name = f"block-{number:06d}-{position:04d}"
            stage_block(checked, staging / name, label)
            parts.append(StagedLog.of_block(name, checked))
        else:
            parts.append(StagedLog(rows_in=checked.drops.total, drops=checked.drops))
    return StagedLog.merged(parts)


def _check(block: LogBlock, chunk: LogChunk, recipe: InputRecipe) -> CheckedRows:
    is_text_file = chunk.layout is not None and chunk.file.format != "jsonl"
    checked = check_rows(block.table, recipe, is_text_file=is_text_file, source=chunk.file.uri)
    lines = [{"line": line[:1000], "place": chunk.file.uri} for line in block.malformed[:MAX_EXAMPLES]]
    checked.drops.add("malformed_row", len(block.malformed), lines)
    return checked


def _time_unit_us(times: Int64s) -> int:
    return next(unit for unit in _TIME_UNITS_US if unit == 1 or not (times % unit).any())


def stage_block(rows: CheckedRows, directory: Path, label: int | None = None) -> None:
    """Writes a block in order of its users' buckets, with the label of its rows if the split is given."""
    users, user_starts = _in_bucket_order(rows.users)
    codes = users.codes.astype(np.uint16 if len(users.dictionary) <= 1 << 16 else np.uint32)
    row_buckets = np.repeat(np.arange(NUM_BUCKETS, dtype=np.uint16), np.diff(user_starts))[codes]
    order = np.argsort(row_buckets, kind="stable")
    columns: dict[str, Any] = {"user": users.codes[order], "item": rows.items.codes[order]}
    if rows.time_us is not None:
        columns["time_us"] = rows.time_us[order]
    if rows.rating is not None:
        columns["rating"] = rows.rating[order]
    if label is not None:
        columns["label"] = np.full(len(order), label, np.int8)
    directory.mkdir(exist_ok=True)
    write_arrow(pa.table({name: pa.array(values) for name, values in columns.items()}), directory / "rows.arrow")
    write_arrow(pa.table({"id": users.dictionary}), directory / "users.arrow")
    write_arrow(pa.table({"id": rows.items.dictionary}), directory / "items.arrow")
    write_array(np.stack([_bucket_starts(row_buckets), user_starts]), directory / "buckets.npy")


def _in_bucket_order(users: IdColumn) -> tuple[IdColumn, Int64s]:
    """Returns the ids with their dictionary in order of buckets, and where each bucket starts in it."""
    buckets = bucket_of(hash_ids(users.dictionary))
    order = np.argsort(buckets, kind="stable")
    new_codes = np.empty(len(order), np.int32)
    new_codes[order] = np.arange(len(order), dtype=np.int32)
    ordered = IdColumn(new_codes[users.codes], users.dictionary.take(pa.array(order)), users.kind)
    return ordered, _bucket_starts(buckets)


def _bucket_starts(buckets: npt.NDArray[np.uint16]) -> Int64s:
    """Returns where each bucket starts among values in order of buckets and, last, their number."""
    return np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=NUM_BUCKETS))])


def partition_bounds(num_partitions: int) -> list[int]:
    """Returns the first bucket of each partition and, last, NUM_BUCKETS."""
    return [p * NUM_BUCKETS // num_partitions for p in range(num_partitions + 1)]


def bucket_of(hashes: UInt64s) -> npt.NDArray[np.uint16]:
    """Returns each hash's bucket in [0, NUM_BUCKETS)."""
    return (hashes >> np.uint64(52)).astype(np.uint16)


def hash_ids(ids: pa.Array) -> UInt64s:
    """Returns a 64-bit hash of each id's text, uint64[n]: the same in every process, for an integer and for its text.

    A polynomial over the text's bytes modulo 2^64, mixed by splitmix64. No protection against deliberate collisions.

    Args:
        ids: Strings or integers without nulls, preferably distinct: the cost is per byte.
    """
    texts = ids.cast(pa.large_string())
    slices = [_hash_slice(texts.slice(start, _HASHED_AT_ONCE)) for start in range(0, len(texts), _HASHED_AT_ONCE)]
    return np.concatenate(slices) if slices else np.zeros(0, np.uint64)


def _hash_slice(texts: pa.LargeStringArray) -> UInt64s:
    _, offset_buffer, byte_buffer = texts.buffers()
    if byte_buffer is None:
        return splitmix64(np.zeros(len(texts), np.uint64))
    offsets = np.frombuffer(offset_buffer, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    text_bytes = np.frombuffer(byte_buffer, np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    terms = (text_bytes.astype(np.uint64) + np.uint64(1)) * _powers(int(lengths.max()))[ranks_in_rows(lengths)]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return splitmix64(sums[starts + lengths] - sums[starts] + lengths.astype(np.uint64))


def _powers(count: int) -> UInt64s:
    """Returns the powers 0, 1, 2, … of the gamma, which is odd and so invertible modulo 2^64."""
    powers = np.full(max(count, 1), GOLDEN_GAMMA, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)
