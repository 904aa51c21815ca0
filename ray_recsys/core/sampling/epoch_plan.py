"""Epoch plan: which positives each worker trains on, and in which order.

Every worker computes the same plan from the manifest alone. The partitions' positives, laid end to end, are cut into
one range per worker; the ranges differ by at most one positive, or end between users (`training.user_shares`), so there
may be more workers than partitions, and a partition that is cut is read by every worker that has a part of it. A worker
shuffles its pieces of partitions every epoch, groups them into windows, and shuffles all positives of a window. The
first window of an epoch is small, so that training starts early; each later one is up to twice as large. Users are
assigned to partitions by a hash, so a window is a random sample of them, a different one each epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.counter_random import Permutation, derive_key
from ray_recsys.core.prepared import PreparedSet

_PIECE_ORDER = 2
_WINDOW_ORDER = 3
_FIRST_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Training interactions `begin..end` of a partition, counted in the order of its histories."""

    partition: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of positives."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Window:
    """Positives `begin..end` of the worker's epoch, which are shuffled together."""

    pieces: tuple[Piece, ...]
    begin: int
    end: int
    order: Permutation
    """From an index in the shuffled window to an index in the order of its pieces."""


@dataclass(frozen=True)
class EpochPlan:
    """A worker's share of each epoch. Each of the `num_steps` steps takes an equal part of every worker's positives."""

    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...]
    """Positives of each worker."""
    rank: int
    num_steps: int
    """Optimizer steps of an epoch, equal on all workers."""
    window_interactions: int
    seed: int

    @classmethod
    def make(
        cls,
        num_training: Sequence[int],
        recipe: Recipe,
        *,
        rank: int,
        world_size: int,
        shares: Sequence[int] | None = None,
    ) -> Self:
        """Returns the plan of worker `rank` for partitions with the given numbers of training interactions.

        Args:
            num_training: Of each partition.
            recipe: Feed, batch size and seed.
            rank: Of this worker.
            world_size: Number of workers.
            shares: Bounds of the workers' ranges; None: they differ by at most one positive.
        """
        total = sum(num_training)
        cuts = shares or [total * worker // world_size for worker in range(world_size + 1)]
        return cls(
            pieces=_cut_pieces(num_training, cuts[rank], cuts[rank + 1]),
            sizes=tuple(int(size) for size in np.diff(cuts)),
            rank=rank,
            num_steps=-(-total // recipe.train.batch_size),
            window_interactions=recipe.feed.window_interactions,
            seed=recipe.seed,
        )

    @classmethod
    def of(
        cls,
        prepared: PreparedSet,
        recipe: Recipe,
        *,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[int] | None = None,
    ) -> Self:
        """Returns what `make` does, for a prepared set."""
        num_training = [info.num_training for info in prepared.manifest.partitions]
        return cls.make(num_training, recipe, rank=rank, world_size=world_size, shares=shares)

    @cached_property
    def cuts(self) -> Int64s:
        """Bounds of this worker's batches in its epoch, int64[num_steps + 1]."""
        return self._cuts_of(self.sizes[self.rank])

    @cached_property
    def global_batch_sizes(self) -> Int64s:
        """Positives of each step over all workers, int64[num_steps]."""
        return np.diff(sum((self._cuts_of(size) for size in self.sizes), np.zeros(1, np.int64)))

    @property
    def fits_in_a_window(self) -> bool:
        """Whether this worker may hold all of its positives in memory at once, and so read them only once."""
        return self.sizes[self.rank] <= self.window_interactions or len(self.pieces) == 1

    def windows(self, epoch: int) -> list[Window]:
        """Returns an epoch's windows in order: each has at least one piece, and otherwise at most the recipe's size."""
        ordered = sorted(self.pieces, key=lambda p: (derive_key(self.seed, _PIECE_ORDER, epoch, p.partition), p.begin))
        groups: list[list[Piece]] = []
        room = 0
        for piece in ordered:
            if piece.size > room or not groups:
                room = min(_FIRST_WINDOW << len(groups), self.window_interactions)
                groups.append([])
            groups[-1].append(piece)
            room -= piece.size
        windows, begin = [], 0
        for group in groups:
            windows.append(self._window(epoch, tuple(sorted(group)), begin))
            begin = windows[-1].end
        return windows

    def _window(self, epoch: int, pieces: tuple[Piece, ...], begin: int) -> Window:
        size = sum(piece.size for piece in pieces)
        key = derive_key(self.seed, _WINDOW_ORDER, epoch, pieces[0].partition, pieces[0].begin)
        return Window(pieces, begin, begin + size, Permutation(size, key))

    def _cuts_of(self, size: int) -> Int64s:
        cuts: Int64s = np.arange(self.num_steps + 1) * size // max(1, self.num_steps)
        return cuts


def _cut_pieces(num_training: Sequence[int], begin: int, end: int) -> tuple[Piece, ...]:
    pieces, first = [], 0
    for partition, size in enumerate(num_training):
        low, high = max(begin - first, 0), min(end - first, size)
        if low < high:
            pieces.append(Piece(partition, low, high))
        first += size
    return tuple(pieces)
