"""Progress of train workers, sent to the driver as typed events while Ray Train runs.

An actor holds the events that the first worker sends until a thread of the driver takes them. It lives on the driver's
node, so that it outlives the workers; should it die all the same, training continues without progress.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_recsys.progress import Event, Reporter, TrainingRestarted, Warned

_TAKE_S = 5.0  # how long the actor waits for an event before it answers with none
_SEND_S = 1.0
_RETRY_S = 0.5
_END_S = 15.0  # for the driver's thread; longer than its longest wait


class _Mailbox:
    """The actor: events in the order in which they were sent, kept so that an answer that was lost is given again."""

    def __init__(self) -> None:
        self._events: list[Event | None] = []
        self._arrived = asyncio.Condition()
        self._num_starts = 0

    async def start(self, epoch: int, step: int) -> None:
        """Notes that the workers start after an epoch and step; every start but the first replaces lost workers."""
        self._num_starts += 1
        if self._num_starts > 1:
            await self.send(TrainingRestarted(epoch, step))

    async def send(self, event: Event | None) -> None:
        """Appends an event; None ends the channel."""
        async with self._arrived:
            self._events.append(event)
            self._arrived.notify_all()

    async def take(self, first: int, timeout_s: float) -> list[Event | None]:
        """Returns the events from number `first` on, after waiting for it for at most `timeout_s`."""
        async with self._arrived:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._arrived.wait_for(lambda: len(self._events) > first), timeout_s)
            return self._events[first:]


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
    # Not soft: Ray places an actor without CPUs on any node then, and the channel would be lost with that node.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
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
    num_taken = 0
    pending = mailbox.take.remote(num_taken, _TAKE_S)
    while True:
        ready, _ = ray.wait([pending], timeout=2 * _TAKE_S)
        if not ready:  # the mailbox has not started yet
            if is_over.is_set():
                return
            continue
        try:
            events = ray.get(pending)
        except ray.exceptions.ActorUnavailableError:  # for a moment, as when another node is lost
            events = []
            time.sleep(_RETRY_S)
        except ray.exceptions.RayError:
            report(Warned("progress is no longer reported: its process is lost; training continues"))
            return
        for event in events:
            if event is None:
                return
            report(event)
        num_taken += len(events)
        pending = mailbox.take.remote(num_taken, _TAKE_S)


def _deliver(reference: Any) -> None:
    """Waits until a message has arrived, or its mailbox is known to be lost."""
    ray.wait([reference], timeout=_SEND_S)
