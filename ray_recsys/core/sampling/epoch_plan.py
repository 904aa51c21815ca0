"""Who trains on which positives, and in which order: worked out alike on every worker from the manifest alone.

Laid end to end, the partitions' positives are cut into one stretch a worker, equal to within one positive, so there may
be more workers than partitions; at most one partition more than there are cuts is read twice. A worker's pieces of
partitions come in an order of their own each epoch, gathered into windows; all positives of a window are shuffled.
An epoch's first window is small, so that training begins when little has been read; each further one is up to twice as
large. Users are in partitions by a hash, so a window is a random sample of them, another one each epoch.
Knows nothing of the positives themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.counter_random import Permutation, derive_key

_PIECE_ORDER = 2
_WINDOW_ORDER = 3
_FIRST_WINDOW = 1 << 20


@dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Training interactions begin..end of a partition, counted in the order of its histories."""

    partition: int
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Number of positives."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Window:
    """Positives that are shuffled with each other; they are `begin..end` of the worker's epoch."""

    pieces: tuple[Piece, ...]
    begin: int
    end: int
    order: Permutation


@dataclass(frozen=True)
class EpochPlan:
    """A worker's part of each epoch. The k-th step of all workers is `num_steps`-th part of each one's positives."""

    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...]
    """Positives of each worker."""
    rank: int
    num_steps: int
    """Optimizer steps of an epoch, equal on all workers."""
    window_interactions: int
    seed: int

    @classmethod
    def make(cls, num_training: Sequence[int], recipe: Recipe, *, rank: int, world_size: int) -> Self:
        """Returns the plan of worker `rank` for partitions with the given numbers of training interactions."""
        total = sum(num_training)
        cuts = [total * worker // world_size for worker in range(world_size + 1)]
        return cls(
            pieces=_cut_pieces(num_training, cuts[rank], cuts[rank + 1]),
            sizes=tuple(int(size) for size in np.diff(cuts)),
            rank=rank,
            num_steps=-(-total // recipe.train.batch_size),
            window_interactions=recipe.feed.window_interactions,
            seed=recipe.seed,
        )

    @cached_property
    def cuts(self) -> Int64s:
        """Where this worker's batches begin and end in its epoch, int64[num_steps + 1]."""
        return self._cuts_of(self.sizes[self.rank])

    @cached_property
    def global_sizes(self) -> Int64s:
        """Positives of each step over all workers, int64[num_steps]."""
        return np.diff(sum((self._cuts_of(size) for size in self.sizes), np.zeros(1, np.int64)))

    @property
    def may_keep_all(self) -> bool:
        """Whether a window could hold all of this worker's positives."""
        return self.sizes[self.rank] <= self.window_interactions or len(self.pieces) == 1

    def windows(self, epoch: int) -> list[Window]:
        """Returns the windows of an epoch, in order: at least one piece each, else up to the recipe's size."""
        ordered = sorted(self.pieces, key=lambda p: (derive_key(self.seed, _PIECE_ORDER, epoch, p.partition), p.begin))
        groups: list[list[Piece]] = []
        room = 0
        for piece in ordered:
            if piece.size > room or not groups:
                room = min(_FIRST_WINDOW << len(groups), self.window_interactions)
                groups.append([])
            groups[-1].append(piece)
            room -= piece.size
        return self._place(epoch, groups)

    def _place(self, epoch: int, groups: list[list[Piece]]) -> list[Window]:
        windows, begin = [], 0
        for group in groups:
            pieces = tuple(sorted(group))
            end = begin + sum(piece.size for piece in pieces)
            key = derive_key(self.seed, _WINDOW_ORDER, epoch, pieces[0].partition, pieces[0].begin)
            windows.append(Window(pieces, begin, end, Permutation(end - begin, key)))
            begin = end
        return windows

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
