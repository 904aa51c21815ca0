"""Epoch stream: the batches of one worker, read window by window in the order of its plan.

A window reader provides the windows: it draws negatives in this process, or receives samples that were drawn elsewhere;
both give the same bytes. Letters: B positives, N negatives.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from ray_recsys.config import Recipe, num_recent_items
from ray_recsys.core.arrays import Float32s, Int32s, Int64s
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Window
from ray_recsys.core.sampling.positives import Samples

Item = TypeVar("Item")

_CHUNK = 16384  # positives sampled at once where batches are smaller, to amortize numpy's overhead per call
_CHUNKS_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """A worker's positives of one step; B may be 0.

    `item_idx[:, 0]` are the positives, the other N columns their negatives. Sums over the workers' batches, divided by
    `global_batch_size`, are means over the step.
    """

    user_idx: Int64s
    item_idx: Int32s
    weight: Float32s
    rating: Float32s | None
    global_batch_size: int
    recent: Int32s | None = None
    """The user's latest items before the positive, latest first, int32[B, L]; -1 where there are fewer."""

    @property
    def num_pairs(self) -> int:
        """Pairs of this worker, B x (1 + N)."""
        return self.item_idx.size


class WindowSamples(Protocol):
    """Samples of a window, in the order of its pieces' histories."""

    def take(self, indices: Int64s) -> Samples:
        """Returns the samples at the given indices."""
        ...


WindowReader = Callable[[int, Sequence[Window]], Iterator[WindowSamples]]
"""(epoch, windows) → the samples of each window, in order. Runs ahead of the training, in another thread."""


class EpochStream:
    """All epochs of one worker. The next window, also that of the next epoch, is read while the current one is used."""

    def __init__(self, plan: EpochPlan, read: WindowReader, recipe: Recipe) -> None:
        """Reads nothing yet."""
        self.plan = plan
        self._read = read
        self._last_epoch = recipe.train.epochs  # nothing is prefetched after it
        self._empty = empty_samples(recipe)
        self._ahead: tuple[int, Prefetched[WindowSamples]] | None = None

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from a step on: equally many on every worker, empty ones included.

        Args:
            epoch: Counted from 1.
            first_step: Counted from 0; windows that end before it are not read.
        """
        plan = self.plan
        if first_step >= plan.num_steps:
            return
        steps_per_chunk = max(1, _CHUNK * plan.num_steps // max(1, plan.sizes[plan.rank]))
        chunk_starts = range(first_step, plan.num_steps, steps_per_chunk)
        chunks = Prefetched(self._chunks(epoch, chunk_starts), _CHUNKS_AHEAD)
        try:
            for start, chunk in zip(chunk_starts, chunks, strict=True):
                for step in range(start, min(start + steps_per_chunk, plan.num_steps)):
                    bounds = plan.cuts[step : step + 2] - plan.cuts[start]
                    part = chunk.take(slice(*bounds))
                    global_batch_size = int(plan.global_batch_sizes[step])
                    yield Batch(part.user_idx, part.item_idx, part.weight, part.rating, global_batch_size, part.recent)
        finally:
            chunks.close()

    def close(self) -> None:
        """Cancels the prefetched next epoch; call it when training ends."""
        if self._ahead is not None:
            self._ahead[1].close()
            self._ahead = None

    def _chunks(self, epoch: int, starts: range) -> Iterator[Samples]:
        """Yields the samples of `starts.step` steps at a time."""
        cuts, num_steps = self.plan.cuts, self.plan.num_steps
        windows = self._windows(epoch, int(cuts[starts.start]))
        window, samples = next(windows, (None, None))
        try:
            for step in starts:
                begin, end = int(cuts[step]), int(cuts[min(step + starts.step, num_steps)])
                parts = []
                while begin < end:
                    assert window is not None
                    assert samples is not None
                    if begin == window.end:
                        samples = None  # frees the old window before the next one is held
                        window, samples = next(windows)
                    stop = min(end, window.end)
                    parts.append(samples.take(window.order(np.arange(begin, stop) - window.begin)))
                    begin = stop
                yield Samples.concatenate(parts) if parts else self._empty
        finally:
            windows.close()

    def _windows(self, epoch: int, begin: int) -> Generator[tuple[Window, WindowSamples], None, None]:
        """Yields windows with their samples, from the one with position `begin`; prefetches the next epoch."""
        windows = [window for window in self.plan.windows(epoch) if window.end > begin]
        samples_of_each = self._open(epoch, windows, is_whole=begin == 0)
        try:
            for number, (window, samples) in enumerate(zip(windows, samples_of_each, strict=False), start=1):
                if number == len(windows) and epoch < self._last_epoch:
                    self._ahead = (epoch + 1, Prefetched(self._read(epoch + 1, self.plan.windows(epoch + 1)), 1))
                yield window, samples
        finally:
            samples_of_each.close()

    def _open(self, epoch: int, windows: list[Window], *, is_whole: bool) -> "Prefetched[WindowSamples]":
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            if ahead[0] == epoch and is_whole:
                return ahead[1]
            ahead[1].close()
        return Prefetched(self._read(epoch, windows), 1)


def empty_samples(recipe: Recipe) -> Samples:
    """Returns no samples, with the columns of the recipe's."""
    is_explicit = recipe.train.objective == "explicit"
    num_columns = 1 if is_explicit else 1 + recipe.feed.num_negatives
    ratings = np.zeros(0, np.float32) if is_explicit else None
    num_recent = num_recent_items(recipe.model)
    recent = np.zeros((0, num_recent), np.int32) if num_recent else None
    return Samples(
        np.zeros(0, np.int64), np.zeros((0, num_columns), np.int32), np.zeros(0, np.float32), ratings, recent
    )


class Prefetched(Generic[Item]):
    """Iterates over `iterator` in a separate thread, up to `depth` items ahead of the consumer.

    An error of the iterator is raised at the item that failed. `close` ends the thread after its current item.
    """

    def __init__(self, iterator: Iterator[Item], depth: int) -> None:
        self._room = threading.Semaphore(depth)
        self._made: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        self._is_closed = False
        self._is_done = False
        self._thread = threading.Thread(target=self._work, args=(iterator,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        """Returns itself."""
        return self

    def __next__(self) -> Item:
        """Returns the next item, and waits for it if necessary."""
        if self._is_done:
            raise StopIteration
        item, error = self._made.get()
        self._room.release()
        if error is not None:
            self._is_done = True
            raise error
        assert item is not None
        return item

    def close(self) -> None:
        """Closes the iterator, after the item that is being made."""
        self._is_closed = self._is_done = True
        self._room.release()
        self._thread.join()

    def _work(self, iterator: Iterator[Item]) -> None:
        try:
            while True:
                self._room.acquire()  # before an item is made, or one more than `depth` would be held
                if self._is_closed:
                    return
                self._made.put((next(iterator), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer's thread
            self._made.put((None, error))
        finally:
            if close := getattr(iterator, "close", None):
                close()
