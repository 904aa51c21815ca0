"""Progress of train workers, sent to the driver as typed events while Ray Train runs.

An actor holds the events that the first worker sends until a thread of the driver takes them. It lives on the driver's
node, so that it outlives the workers; should it die all the same, training continues without progress.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_recsys.progress import Event, Reporter, TrainingRestarted

_TAKE_S = 5.0  # how long the actor waits for an event before it answers with none
_SEND_S = 1.0
_END_S = 15.0  # for the driver's thread; longer than its longest wait


class _Mailbox:
    """The actor: events in the order in which they were sent."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._num_starts = 0

    async def start(self, epoch: int, step: int) -> None:
        """Notes that the workers start after an epoch and step; every start but the first replaces lost workers."""
        self._num_starts += 1
        if self._num_starts > 1:
            self._events.put_nowait(TrainingRestarted(epoch, step))

    async def send(self, event: Event | None) -> None:
        """Appends an event; None ends the channel."""
        self._events.put_nowait(event)

    async def take(self, timeout_s: float) -> list[Event | None]:
        """Returns all events, after waiting for the first of them for at most `timeout_s`."""
        try:
            events = [await asyncio.wait_for(self._events.get(), timeout_s)]
        except TimeoutError:
            return []
        while not self._events.empty():
            events.append(self._events.get_nowait())
        return events


class ProgressSender:
    """The workers' end of a channel; picklable. Its methods return within about a second and never raise."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def start(self, epoch: int, step: int = 0) -> None:
        """Tells that the workers start, or restart, after a finished epoch and a step of the next."""
        _deliver(self._mailbox.start.remote(epoch, step))

    def send(self, event: Event) -> None:
        """Sends an event."""
        _deliver(self._mailbox.send.remote(event))


@contextmanager
def progress_channel(report: Reporter) -> Iterator[ProgressSender]:
    """Yields the sender for the workers; everything sent is reported, in order, by the time the block ends."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    mailbox: Any = ray.remote(_Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    is_over = threading.Event()
    thread = threading.Thread(target=_report_all, args=(mailbox, report, is_over), name="progress", daemon=True)
    thread.start()
    try:
        yield ProgressSender(mailbox)
    finally:
        _deliver(mailbox.send.remote(None))
        is_over.set()
        thread.join(_END_S)
        ray.kill(mailbox)


def _report_all(mailbox: Any, report: Reporter, is_over: threading.Event) -> None:
    """Reports the events of a mailbox until the channel ends or the mailbox is lost."""
    pending = mailbox.take.remote(_TAKE_S)
    while True:
        ready, _ = ray.wait([pending], timeout=2 * _TAKE_S)
        if not ready:  # the mailbox has not started yet
            if is_over.is_set():
                return
            continue
        try:
            events = ray.get(pending)
        except ray.exceptions.RayError:
            report("progress is no longer reported: its process is lost; training continues")
            return
        for event in events:
            if event is None:
                return
            report(event)
        pending = mailbox.take.remote(_TAKE_S)


def _deliver(reference: Any) -> None:
    """Waits until a message has arrived, or its mailbox is known to be lost."""
    ray.wait([reference], timeout=_SEND_S)
