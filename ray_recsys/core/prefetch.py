"""An iterator that works ahead in a thread of its own. Knows nothing of what it yields."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetched(Generic[Item]):
    """Yields what `source` yields, with up to `depth` items made before they are asked for.

    An error of the source is raised where its item would have come. `close` ends the thread at its next item.
    """

    def __init__(self, source: Iterator[Item], depth: int) -> None:
        self._room = threading.Semaphore(depth)
        self._made: queue.SimpleQueue[tuple[Item | None, BaseException | None]] = queue.SimpleQueue()
        self._is_closed = False
        self._is_done = False
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        """Returns itself."""
        return self

    def __next__(self) -> Item:
        """Returns the next item, waiting for it if need be."""
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
        """Lets go of the source; waits for the item that is being made."""
        self._is_closed = self._is_done = True
        self._room.release()
        self._thread.join()

    def _work(self, source: Iterator[Item]) -> None:
        try:
            while True:
                self._room.acquire()  # before the item is made, else one more than `depth` would wait
                if self._is_closed:
                    return
                self._made.put((next(source), None))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised in the thread that waits for it
            self._made.put((None, error))
        finally:
            if close := getattr(source, "close", None):
                close()
