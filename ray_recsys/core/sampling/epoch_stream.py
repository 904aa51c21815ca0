"""Batches of an epoch: what a worker's windows hold, in the plan's order, cut into the plan's steps.

Where the windows come from is the caller's business: it may read and draw here, or receive samples drawn elsewhere;
both give the same bytes. Knows nothing of Ray. B positives, N negatives.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ray_recsys.config import Recipe
from ray_recsys.core.arrays import Float32s, Int32s, Int64s
from ray_recsys.core.prefetch import Prefetched
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Window
from ray_recsys.core.sampling.positives import Samples

_CHUNK = 16384  # positives made at once, where batches are smaller: numpy's cost per call is spread
_CHUNKS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """A worker's positives of one step; B may be 0.

    `item_idx[:, 0]` are the positives, the other N columns their negatives. Sums over the workers' batches, divided by
    `global_size`, are means over the step.
    """

    user_idx: Int64s
    item_idx: Int32s
    weight: Float32s
    rating: Float32s | None
    global_size: int


class WindowSamples(Protocol):
    """The samples of a window, addressed by place in the order of its histories."""

    def take(self, places: Int64s) -> Samples:
        """Returns the samples at the given places."""
        ...


Source = Callable[[int, Sequence[Window]], Iterator[WindowSamples]]
"""(epoch, windows) → what is in each, in order. It is run ahead, in another thread."""


class EpochStream:
    """All epochs of one worker. While a window is used, the next one is made ready, also that of the next epoch."""

    def __init__(self, plan: EpochPlan, source: Source, recipe: Recipe) -> None:
        """Reads nothing yet."""
        self.plan = plan
        self._source = source
        self._last_epoch = recipe.train.epochs  # after it nothing is made ready
        self._empty = _empty_samples(recipe)
        self._ahead: tuple[int, Prefetched[WindowSamples]] | None = None

    @property
    def num_steps(self) -> int:
        """Batches of an epoch, equal on all workers."""
        return self.plan.num_steps

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the epoch's batches from a step on; as many on every worker, empty ones included.

        Args:
            epoch: Counted from 1.
            first_step: Counted from 0; what comes before it is not read, if it fills windows.
        """
        plan = self.plan
        if first_step >= plan.num_steps:
            return
        steps_per_chunk = max(1, _CHUNK * plan.num_steps // max(1, plan.sizes[plan.rank]))
        first_steps = range(first_step, plan.num_steps, steps_per_chunk)
        chunks = Prefetched(self._chunks(epoch, first_steps), _CHUNKS_AHEAD)
        try:
            for step, chunk in zip(first_steps, chunks, strict=True):
                for s in range(step, min(step + steps_per_chunk, plan.num_steps)):
                    part = chunk.take(slice(plan.cuts[s] - plan.cuts[step], plan.cuts[s + 1] - plan.cuts[step]))
                    size = int(plan.global_sizes[s])
                    yield Batch(part.user_idx, part.item_idx, part.weight, part.rating, size)
        finally:
            chunks.close()

    def close(self) -> None:
        """Lets go of what was made ready for an epoch that does not come."""
        if self._ahead is not None:
            self._ahead[1].close()
            self._ahead = None

    def _chunks(self, epoch: int, first_steps: range) -> Iterator[Samples]:
        """Yields the samples of `first_steps.step` steps at a time."""
        cuts, num_steps = self.plan.cuts, self.plan.num_steps
        windows = self._windows(epoch, int(cuts[first_steps.start]))
        window, samples = next(windows, (None, None))
        try:
            for step in first_steps:
                begin, end = int(cuts[step]), int(cuts[min(step + first_steps.step, num_steps)])
                parts = []
                while begin < end:
                    assert window is not None
                    assert samples is not None
                    if begin == window.end:
                        samples = None  # let go of the old window before the next one comes
                        window, samples = next(windows)
                    stop = min(end, window.end)
                    parts.append(samples.take(window.order(np.arange(begin, stop) - window.begin)))
                    begin = stop
                yield Samples.concatenate(parts) if parts else self._empty
        finally:
            windows.close()

    def _windows(self, epoch: int, begin: int) -> Generator[tuple[Window, WindowSamples], None, None]:
        """Yields the epoch's windows from the one that holds place `begin` on, each with what is in it."""
        windows = [window for window in self.plan.windows(epoch) if window.end > begin]
        held = self._open(epoch, windows, is_whole=begin == 0)
        try:
            for place, (window, samples) in enumerate(zip(windows, held, strict=False), start=1):
                if place == len(windows) and epoch < self._last_epoch:
                    self._ahead = (epoch + 1, Prefetched(self._source(epoch + 1, self.plan.windows(epoch + 1)), 1))
                yield window, samples
        finally:
            held.close()

    def _open(self, epoch: int, windows: list[Window], *, is_whole: bool) -> Prefetched[WindowSamples]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[0] == epoch and is_whole:
                return ahead[1]
            ahead[1].close()
        return Prefetched(self._source(epoch, windows), 1)


def _empty_samples(recipe: Recipe) -> Samples:
    is_explicit = recipe.train.objective == "explicit"
    num_columns = 1 if is_explicit else 1 + recipe.feed.num_negatives
    ratings = np.zeros(0, np.float32) if is_explicit else None
    return Samples(np.zeros(0, np.int64), np.zeros((0, num_columns), np.int32), np.zeros(0, np.float32), ratings)
