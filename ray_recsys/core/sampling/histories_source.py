"""Windows of histories from which a worker draws by itself; what it may hold at once is read once for all epochs.

Knows nothing of where histories are kept, nor how they come here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece, Window
from ray_recsys.core.sampling.epoch_stream import WindowSamples
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, Samples

Read = Callable[[Sequence[Piece]], Iterator[pa.Table]]
"""Pieces → the whole partition of each, in order."""


@dataclass(frozen=True, slots=True)
class DrawnHere:
    """Samples made when they are taken."""

    positives: Positives
    epoch: int
    sampler: NegativeSampler

    def take(self, places: Int64s) -> Samples:
        """Returns the samples at the given places."""
        return self.positives.samples(places, self.epoch, self.sampler)


class HistoriesSource:
    """The source of an epoch stream that draws where it is used."""

    def __init__(self, plan: EpochPlan, sampler: NegativeSampler, recipe: Recipe, read: Read) -> None:
        self._plan = plan
        self._sampler = sampler
        self._recipe = recipe
        self._read = read
        self._kept: dict[Piece, Positives] = {}

    def __call__(self, epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        """Yields what is in each window."""
        missing = [piece for window in windows for piece in window.pieces if piece not in self._kept]
        tables = self._read(missing) if missing else iter(())
        for window in windows:
            parts = [self._kept[piece] if piece in self._kept else self._make(piece, tables) for piece in window.pieces]
            yield DrawnHere(Positives.concatenate(parts), epoch, self._sampler)

    def _make(self, piece: Piece, tables: Iterator[pa.Table]) -> Positives:
        positives = Positives.from_table(next(tables), piece, self._sampler.num_items, self._recipe)
        if self._plan.may_keep_all:
            self._kept[piece] = positives
        return positives
