"""Events of a train worker reach the driver in order, and neither the worker's nor the channel's death ends more."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest
import ray

from ray_recsys.distributed import progress_channel as module
from ray_recsys.distributed.progress_channel import ProgressSender, progress_channel
from ray_recsys.progress import EpochFinished, Event, TrainingRestarted, Warned

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def epoch(number: int) -> EpochFinished:
    return EpochFinished(
        number, num_epochs=9, loss=1 / number, samples_per_s=100.0, metric="NDCG@10", metrics={"NDCG@10": 0.5}
    )


@ray.remote(num_cpus=0.1)
def work(progress: ProgressSender, epochs: range) -> None:
    """What the first worker does with the channel."""
    progress.start(epochs.start - 1)
    for number in epochs:
        progress.send(epoch(number))


@ray.remote(num_cpus=0.1, max_retries=0)
def die_after(progress: ProgressSender, epochs: range) -> None:
    """A first worker that is killed."""
    progress.start(epochs.start - 1)
    for number in epochs:
        progress.send(epoch(number))
    os.kill(os.getpid(), signal.SIGKILL)


def test_events_arrive_in_order_before_the_block_ends() -> None:
    events: list[Event] = []
    with progress_channel(events.append) as progress:
        ray.get(work.remote(progress, range(1, 40)), timeout=60)
    assert events == [epoch(number) for number in range(1, 40)]  # a first start is no event


def test_an_event_is_reported_while_the_workers_run() -> None:
    events: list[Event] = []
    with progress_channel(events.append) as progress:
        progress.send(epoch(1))
        wait_until(lambda: events == [epoch(1)])


def test_the_death_of_a_worker_becomes_an_event() -> None:
    events: list[Event] = []
    with progress_channel(events.append) as progress:
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            ray.get(die_after.remote(progress, range(1, 4)), timeout=60)
        ray.get(work.remote(progress, range(3, 5)), timeout=60)
    assert events == [epoch(1), epoch(2), epoch(3), TrainingRestarted(2), epoch(3), epoch(4)]


def test_the_death_of_the_channel_is_reported_once_and_ends_nothing() -> None:
    events: list[Event] = []
    with progress_channel(events.append) as progress:
        progress.send(epoch(1))
        wait_until(lambda: events == [epoch(1)])
        for process in mailboxes():
            process.kill()
        wait_until(lambda: len(events) == 2)
        start_s = time.monotonic()
        ray.get(work.remote(progress, range(2, 5)), timeout=60)
    assert time.monotonic() - start_s < 30
    assert events == [epoch(1), Warned("progress is no longer reported: its process is lost; training continues")]


def test_an_answer_that_was_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    get, num_lost = ray.get, 0

    def lose_first(*args: Any, **options: Any) -> Any:
        nonlocal num_lost
        answer = get(*args, **options)
        if threading.current_thread().name == "progress" and answer and not num_lost:
            num_lost += 1
            raise ray.exceptions.ActorUnavailableError("socket closed", actor_id=None)
        return answer

    monkeypatch.setattr(ray, "get", lose_first)
    events: list[Event] = []
    with progress_channel(events.append) as progress:
        get(work.remote(progress, range(1, 4)), timeout=60)
    assert num_lost == 1
    assert events == [epoch(1), epoch(2), epoch(3)]


def test_an_error_in_the_block_ends_the_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAKE_S", 0.2)  # the thread asks again and again
    events: list[Event] = []

    def train() -> None:
        with progress_channel(events.append) as progress:
            time.sleep(1)
            progress.send(epoch(1))
            raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        train()
    assert events == [epoch(1)]
    wait_until(lambda: not list(mailboxes()))


def mailboxes() -> Iterator[psutil.Process]:
    """Yields the channels' processes of this session's Ray."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "_Mailbox" in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


def wait_until(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
