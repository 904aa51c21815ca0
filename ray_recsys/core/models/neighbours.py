"""The items most similar to each item.

Shapes: I items, N neighbours of each, D embedding width.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import faiss
import numpy as np

from ray_recsys.core.arrays import Float32s, Int32s
from ray_recsys.core.executor import Executor, Shared
from ray_recsys.core.inverted_lists import SEED, build_lists, tune
from ray_recsys.errors import IntegrityError

IDX = "neighbours.npy"
SCORES = "neighbour_scores.npy"
MAX_BLOCK_COSINES = 1 << 25  # float32: 128 MiB
MAX_EXACT_VALUES = 1 << 22  # items x width; comparing 65,536 items of width 64 takes seconds, a million takes an hour
_NUM_SAMPLED, _MIN_RECALL = 256, 0.95
_ROWS_AT_ONCE = 1 << 14
NONE = -1
"""Fills the row of an item with fewer than N neighbours, in `item_idx`; its score is 0."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`item_idx` int32[I, N] and their similarities `scores` float32[I, N], best first, ties by item_idx."""

    item_idx: Int32s
    scores: Float32s
    recall: float = 1.0
    """Part of the true nearest items that are here, on a sample; 1: the search was exact. Not written."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Maps both files into memory.

        Raises:
            IntegrityError: They do not belong together.
        """
        try:
            item_idx = np.load(directory / IDX, mmap_mode="r", allow_pickle=False).view(np.ndarray)
            scores = np.load(directory / SCORES, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{directory}: neighbours cannot be read ({error})") from error
        if item_idx.ndim != 2 or item_idx.shape != scores.shape:
            raise IntegrityError(f"{directory / IDX} does not belong to {SCORES}")
        return cls(item_idx, scores)

    def write(self, directory: Path) -> None:
        """Writes both files."""
        np.save(directory / IDX, self.item_idx, allow_pickle=False)
        np.save(directory / SCORES, self.scores, allow_pickle=False)

    def of(self, item_idx: int, num_neighbours: int) -> tuple[Int32s, Float32s]:
        """Returns the best neighbours of one item and their similarities; fewer where there are fewer."""
        items = self.item_idx[item_idx, :num_neighbours]
        num_kept = int(np.count_nonzero(items != NONE))
        return np.asarray(items[:num_kept]), np.asarray(self.scores[item_idx, :num_kept])


def nearest_by_cosine(embeddings: Float32s, num_neighbours: int, executor: Executor) -> Neighbours:
    """Returns the items with the highest cosine to each item, itself left out.

    Args:
        embeddings: float32[I, D].
        num_neighbours: N; fewer in a smaller catalogue.
        executor: Runs the blocks of a large catalogue; one block of cosines is in memory at a time in each task. Above
            4 M values the search is approximate, in this process.
    """
    unit = _unit_rows(embeddings)
    if unit.size > MAX_EXACT_VALUES:
        return _nearest_in_lists(unit, num_neighbours)
    blocks = block_bounds(len(unit))
    if len(blocks) == 1:
        return _nearest(unit, *blocks[0], num_neighbours)
    task = partial(_nearest_task, executor.share(unit), blocks, num_neighbours)
    parts = dict(executor.map(task, len(blocks), stage="finding similar items"))
    return join_blocks([parts[number] for number in range(len(blocks))])


def _nearest_in_lists(unit: Float32s, num_neighbours: int) -> Neighbours:
    """Returns the nearest items that inverted lists find, at least 95 % of the true ones on a sample."""
    lists, num_kept = build_lists(unit, faiss.METRIC_INNER_PRODUCT), min(num_neighbours, len(unit) - 1)
    sample = np.sort(np.random.default_rng(SEED).choice(len(unit), _NUM_SAMPLED, replace=False))
    exact = faiss.knn(unit[sample], unit, num_kept + 1, metric=faiss.METRIC_INNER_PRODUCT)[1]
    recall = tune(lists, unit[sample], exact, _MIN_RECALL)
    if recall is None:
        lists.nprobe, recall = lists.nlist, 1.0
    starts = range(0, len(unit), _ROWS_AT_ONCE)
    found = join_blocks(
        [_without_self(lists, unit[start : start + _ROWS_AT_ONCE], start, num_kept) for start in starts]
    )
    return Neighbours(found.item_idx, found.scores, round(recall, 4))


def _without_self(lists: "faiss.IndexIVFFlat", unit: Float32s, start: int, num_kept: int) -> Neighbours:
    scores, items = lists.search(unit, num_kept + 1)
    is_self = items == np.arange(start, start + len(unit))[:, None]
    order = np.lexsort((items, -scores, is_self | (items < 0)), axis=1)[:, :num_kept]  # the missing ones come last
    items, scores = np.take_along_axis(items, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return Neighbours(items.astype(np.int32), np.where(items >= 0, scores, 0).astype(np.float32))


def _nearest_task(
    unit: Shared[Float32s], blocks: list[tuple[int, int]], num_neighbours: int, number: int
) -> tuple[int, Neighbours]:
    return number, _nearest(unit.get(), *blocks[number], num_neighbours)


def _unit_rows(embeddings: Float32s) -> Float32s:
    """Returns the rows scaled to length 1; a zero row stays zero and is similar to nothing."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: Float32s = (embeddings / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return unit


def _nearest(unit: Float32s, start: int, stop: int, num_neighbours: int) -> Neighbours:
    return top_of_block(unit[start:stop] @ unit.T, start, num_neighbours)


def top_of_block(similarities: Float32s, start: int, num_neighbours: int) -> Neighbours:
    """Returns the neighbours of items start, start + 1, ...; an item is not its own neighbour.

    Args:
        similarities: float32[B, I], of each item of the block to all; the similarity to itself is overwritten.
        start: First item of the block.
        num_neighbours: At most this many; fewer in a smaller catalogue.
    """
    num_rows, num_items = similarities.shape
    num_kept = min(num_neighbours, num_items - 1)
    similarities[np.arange(num_rows), np.arange(start, start + num_rows)] = -np.inf
    best = np.sort(np.argpartition(-similarities, max(num_kept - 1, 0), axis=1)[:, :num_kept], axis=1)
    scores = np.take_along_axis(similarities, best, axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")
    return Neighbours(
        np.take_along_axis(best, order, axis=1).astype(np.int32),
        np.take_along_axis(scores, order, axis=1).astype(np.float32),
    )


def join_blocks(blocks: list[Neighbours]) -> Neighbours:
    """Returns the neighbours of consecutive blocks as one."""
    return Neighbours(np.concatenate([b.item_idx for b in blocks]), np.concatenate([b.scores for b in blocks]))


def block_bounds(num_items: int) -> list[tuple[int, int]]:
    """Returns (start, stop) of the blocks whose similarities to the catalogue are held at once."""
    size = max(1, MAX_BLOCK_COSINES // num_items)
    return [(start, min(start + size, num_items)) for start in range(0, num_items, size)]
