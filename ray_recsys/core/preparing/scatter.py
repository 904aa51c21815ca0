"""First pass of prepare: one chunk of a log → staging blocks, each with its rows in order of hash buckets of users.

A block is a folder of Arrow files: `rows` (codes of user and item, time, rating), `users` and `items` (what the codes
stand for) and `buckets.npy` (where each bucket begins in rows and in users). Writing one again gives the same bytes, so
a task that is run twice does no harm. Knows nothing of other chunks, and of Ray.
"""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_recsys.config import InputRecipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.preparing.drops import MAX_EXAMPLES, DropLog
from ray_recsys.core.preparing.id_hash import NUM_BUCKETS, bucket_of, hash_ids
from ray_recsys.core.preparing.interactions import CheckedRows, IdColumn, IdKind, check_rows, merge_kinds
from ray_recsys.core.preparing.log_reader import LogBlock, LogChunk, iter_blocks

_TIME_UNITS = (1_000_000, 1_000, 1)  # microseconds, coarsest first


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """What the first pass says of a chunk; small, whatever the size of the chunk."""

    blocks: list[str]
    rows_in: int
    rows_kept: int
    user_kind: IdKind
    item_kind: IdKind
    time_unit_us: int
    """Coarsest of 1 s, 1 ms, 1 us of which every time is a multiple."""
    time_range_us: tuple[int, int] | None
    drops: DropLog


def scatter_chunk(chunk: LogChunk, number: int, recipe: InputRecipe, staging: Path) -> ChunkReport:
    """Reads, checks and stages a chunk.

    Args:
        chunk: Part of a log.
        number: Its number in the log, which names its blocks.
        recipe: Of the input.
        staging: Folder of all blocks.

    Raises:
        DataError: A damaged file or a column of an impossible type.
    """
    drops, names, kept = DropLog(), [], []
    rows_in = 0
    for place, block in enumerate(iter_blocks(chunk, recipe)):
        rows_in += block.table.num_rows + len(block.malformed)
        checked = _check(block, chunk, recipe)
        drops.merge(checked.drops)
        if len(checked.users.codes) == 0:
            continue
        names.append(f"block-{number:06d}-{place:04d}")
        stage_block(checked, staging / names[-1])
        kept.append(_Summary.of(checked))
    ranges = [s.time_range_us for s in kept if s.time_range_us is not None]
    return ChunkReport(
        blocks=names,
        rows_in=rows_in,
        rows_kept=sum(s.num_rows for s in kept),
        user_kind=merge_kinds([s.user_kind for s in kept]),
        item_kind=merge_kinds([s.item_kind for s in kept]),
        time_unit_us=min((s.time_unit_us for s in kept), default=_TIME_UNITS[0]),
        time_range_us=(min(r[0] for r in ranges), max(r[1] for r in ranges)) if ranges else None,
        drops=drops,
    )


@dataclass(frozen=True, slots=True)
class _Summary:
    num_rows: int
    user_kind: IdKind
    item_kind: IdKind
    time_unit_us: int
    time_range_us: tuple[int, int] | None

    @classmethod
    def of(cls, rows: CheckedRows) -> "_Summary":
        times = rows.time_us
        return cls(
            num_rows=len(rows.users.codes),
            user_kind=rows.users.kind,
            item_kind=rows.items.kind,
            time_unit_us=_TIME_UNITS[0] if times is None else _time_unit_us(times),
            time_range_us=None if times is None else (int(times.min()), int(times.max())),
        )


def _check(block: LogBlock, chunk: LogChunk, recipe: InputRecipe) -> CheckedRows:
    is_text_file = chunk.layout is not None and chunk.file.format != "jsonl"
    checked = check_rows(block.table, recipe, is_text_file=is_text_file, place=chunk.file.uri)
    lines = [{"line": line[:1000], "place": chunk.file.uri} for line in block.malformed[:MAX_EXAMPLES]]
    checked.drops.add("malformed_row", len(block.malformed), lines)
    return checked


def _time_unit_us(times: Int64s) -> int:
    return next(unit for unit in _TIME_UNITS if unit == 1 or not (times % unit).any())


def stage_block(rows: CheckedRows, directory: Path) -> None:
    """Writes a block in order of the buckets of its users."""
    users, user_starts = _in_bucket_order(rows.users)
    codes = users.codes.astype(np.uint16 if len(users.dictionary) <= 1 << 16 else np.uint32)
    row_buckets = np.repeat(np.arange(NUM_BUCKETS, dtype=np.uint16), np.diff(user_starts))[codes]
    order = np.argsort(row_buckets, kind="stable")
    row_starts = np.concatenate([[0], np.cumsum(np.bincount(row_buckets, minlength=NUM_BUCKETS))])
    columns: dict[str, Any] = {"user": users.codes[order], "item": rows.items.codes[order]}
    if rows.time_us is not None:
        columns["time_us"] = rows.time_us[order]
    if rows.rating is not None:
        columns["rating"] = rows.rating[order]
    directory.mkdir(exist_ok=True)
    write_arrow(pa.table({name: pa.array(values) for name, values in columns.items()}), directory / "rows.arrow")
    write_arrow(pa.table({"id": users.dictionary}), directory / "users.arrow")
    write_arrow(pa.table({"id": rows.items.dictionary}), directory / "items.arrow")
    write_array(np.stack([row_starts, user_starts]), directory / "buckets.npy")


def _in_bucket_order(users: IdColumn) -> tuple[IdColumn, Int64s]:
    """Returns the ids with their dictionary in order of buckets, and where each bucket begins in it."""
    buckets = bucket_of(hash_ids(users.dictionary))
    order = np.argsort(buckets, kind="stable")
    new_codes = np.empty(len(order), np.int32)
    new_codes[order] = np.arange(len(order), dtype=np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(buckets, minlength=NUM_BUCKETS))])
    return IdColumn(new_codes[users.codes], users.dictionary.take(pa.array(order)), users.kind), starts


def write_arrow(table: pa.Table, path: Path) -> None:
    """Writes an Arrow file in one step, so that no other process sees half of it."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    partial.replace(path)


def read_arrow(path: Path) -> pa.Table:
    """Returns an Arrow file's table, memory-mapped: only what is touched is read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def write_array(values: npt.NDArray[Any], path: Path) -> None:
    """Writes a numpy array in one step."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with partial.open("wb") as file:
        np.save(file, values, allow_pickle=False)
    partial.replace(path)
