"""The distinct items of a log, merged from the dictionaries of its staging blocks, and their codes.

An item's code is its place in the order of ids (numbers by value, texts by UTF-8 bytes), so that it depends on nothing
but the ids. Needs memory for the items of the log and of a few blocks at once.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.preparing.interactions import IdKind, cast_ids
from ray_recsys.core.preparing.scatter import read_arrow, write_array, write_arrow

ITEM_IDS = "item_ids.arrow"
_RANKS = "item_ranks.npy"
_MERGED_AT_ONCE = 4_000_000


def merge_items(blocks: Sequence[str], kind: IdKind, staging: Path) -> pa.Array:
    """Returns the distinct item ids in order; writes what `read_codes` needs beside the blocks."""
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


def _merge(merged: pa.Array, waiting: Iterable[tuple[str, pa.Array]], staging: Path) -> pa.Array:
    """Appends the new ids of blocks, in order of meeting; a block's file says where each of its ids stands."""
    waiting = list(waiting)
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
        """Returns the log-wide code of each row of a block, given its code in the block's own dictionary."""
        met = np.load(self._staging / block / "item_codes.npy", mmap_mode="r")
        codes: Int32s = self._ranks[met[local_codes]]
        return codes


def vocabulary_order(training_counts: Int64s) -> Int64s:
    """Returns the codes of the items with training interactions: by descending count, ties by id."""
    order = np.argsort(-training_counts, kind="stable")
    return order[: np.count_nonzero(training_counts)]
