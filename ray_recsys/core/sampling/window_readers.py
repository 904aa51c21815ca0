"""Window readers and their inputs: histories to draw from in this process, or samples as Arrow tables."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int32s, Int64s
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece, Window
from ray_recsys.core.sampling.epoch_stream import EpochStream, WindowSamples
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, Samples, needed_columns

ReadPartitions = Callable[[Sequence[Piece]], Iterator[pa.Table]]
"""Pieces → the whole partition of each, in order."""


@dataclass(frozen=True, slots=True)
class _LazySamples:
    """Samples of a window whose negatives are drawn when they are taken."""

    positives: Positives
    epoch: int
    sampler: NegativeSampler

    def take(self, indices: Int64s) -> Samples:
        """Returns the samples at the given indices."""
        return self.positives.samples(indices, self.epoch, self.sampler)


class HistoryReader:
    """Window reader that draws negatives in this process; data that fit one window are read only once."""

    def __init__(self, plan: EpochPlan, sampler: NegativeSampler, recipe: Recipe, read: ReadPartitions) -> None:
        self._plan = plan
        self._sampler = sampler
        self._recipe = recipe
        self._read = read
        self._kept: dict[Piece, Positives] = {}

    def __call__(self, epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        """Yields the samples of each window."""
        missing = [piece for window in windows for piece in window.pieces if piece not in self._kept]
        tables = self._read(missing) if missing else iter(())
        for window in windows:
            parts = [self._kept[piece] if piece in self._kept else self._make(piece, tables) for piece in window.pieces]
            yield _LazySamples(Positives.concatenate(parts), epoch, self._sampler)

    def _make(self, piece: Piece, tables: Iterator[pa.Table]) -> Positives:
        positives = Positives.from_table(next(tables), piece, self._sampler.num_items, self._recipe)
        if self._plan.fits_in_a_window:
            self._kept[piece] = positives
        return positives


def local_feed(
    prepared: PreparedSet,
    recipe: Recipe,
    *,
    rank: int = 0,
    world_size: int = 1,
    shares: Sequence[int] | None = None,
) -> EpochStream:
    """Returns the epoch stream of worker `rank` of `world_size`, read from the prepared set by this process alone.

    Its batches equal, byte for byte, those of a Ray Train worker. `shares` is that of `EpochPlan.make`.
    """

    def read(pieces: Sequence[Piece]) -> Iterator[pa.Table]:
        columns = needed_columns(recipe)
        return (prepared.read_columns(piece.partition, columns) for piece in pieces)

    plan = EpochPlan.of(prepared, recipe, rank=rank, world_size=world_size, shares=shares)
    sampler = NegativeSampler.from_recipe(recipe, prepared.item_counts())
    return EpochStream(plan, HistoryReader(plan, sampler, recipe, read), recipe)


def samples_to_table(samples: Samples) -> pa.Table:
    """Returns samples as one row each, to be sent from the process that draws to the one that trains."""
    items = pa.array(samples.item_idx.reshape(-1))
    columns = {
        "user_idx": pa.array(samples.user_idx),
        "item_idx": pa.FixedSizeListArray.from_arrays(items, samples.item_idx.shape[1]),
        "weight": pa.array(samples.weight),
    }
    if samples.rating is not None:
        columns["rating"] = pa.array(samples.rating)
    if samples.recent is not None:
        flat = pa.array(samples.recent.reshape(-1))
        columns["recent"] = pa.FixedSizeListArray.from_arrays(flat, samples.recent.shape[1])
    return pa.table(columns)


def samples_from_table(table: pa.Table) -> Samples:
    """Returns the samples of a table made by `samples_to_table`; the arrays may be read-only."""
    table = table.combine_chunks()
    rating = table["rating"].to_numpy() if "rating" in table.column_names else None
    recent = _matrix(table, "recent") if "recent" in table.column_names else None
    return Samples(table["user_idx"].to_numpy(), _matrix(table, "item_idx"), table["weight"].to_numpy(), rating, recent)


def _matrix(table: pa.Table, name: str) -> Int32s:
    column = table[name].combine_chunks()
    matrix: Int32s = column.flatten().to_numpy().reshape(-1, column.type.list_size).astype(np.int32, copy=False)
    return matrix
