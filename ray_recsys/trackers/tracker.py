"""The tracker interface, and its isolation: a tracker cannot block or stop the training that it records.

Each tracker has its own thread. One that fails or does not answer causes a warning; training continues without it.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from ray_recsys.config import Recipe
from ray_recsys.progress import EpochFinished, Event, Reporter, Warned
from ray_recsys.storage.location import Location, LocationLike
from ray_recsys.trackers.mlflow import MLflowTracker
from ray_recsys.trackers.tensorboard import TensorBoardTracker

END_S = 20.0
"""Maximum time that the end of training waits for a tracker."""


class Tracker(Protocol):
    """Records one run; made when its training starts or resumes."""

    def log_epoch(self, event: EpochFinished) -> None:
        """Records an epoch. One that is trained again after a loss comes again."""
        ...

    def close(self, metrics: Mapping[str, float] | None) -> None:
        """Ends the record with the finished run's validation metrics; None: training ended with an error."""
        ...


Recorder = TypeVar("Recorder")


class Background(Generic[Recorder]):
    """Calls one object in a thread, in order; its first error is reported and ends the calls.

    Args:
        name: As reported.
        make: Makes the object, in the thread.
        report: Gets the warning.
    """

    def __init__(self, name: str, make: Callable[[], Recorder], report: Reporter) -> None:
        self._name, self._make, self._report = name, make, report
        self._calls: queue.SimpleQueue[Callable[[Recorder], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def call(self, action: Callable[[Recorder], None]) -> None:
        """Queues a call after all earlier ones; returns at once."""
        self._calls.put(action)

    def close(self, timeout_s: float = END_S) -> None:
        """Waits for the calls."""
        self._calls.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._report(Warned(f"{self._name} has not answered for {timeout_s:g} s: its record is not complete"))

    def _run(self) -> None:
        try:
            recorder = self._make()
            while (action := self._calls.get()) is not None:
                action(recorder)
        except Exception as error:  # noqa: BLE001 - a tracker's errors must not affect training
            first_line = (str(error).strip().splitlines() or [""])[0]
            self._report(Warned(f"{self._name} does not record this run: {type(error).__name__}: {first_line}"))


class Tracking:
    """All trackers of one training; a reporter that passes every event on."""

    def __init__(self, trackers: list[Background[Tracker]], report: Reporter) -> None:
        self._trackers, self._report = trackers, report
        self._metrics: Mapping[str, float] | None = None

    def __call__(self, event: Event) -> None:
        """Reports an event, and records it if it is an epoch."""
        self._report(event)
        if isinstance(event, EpochFinished):
            for tracker in self._trackers:
                tracker.call(lambda recorder, epoch=event: recorder.log_epoch(epoch))  # type: ignore[misc]

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Notes that training is done."""
        self._metrics = metrics

    def close(self) -> None:
        """Ends all records."""
        for tracker in self._trackers:
            tracker.call(lambda recorder: recorder.close(self._metrics))
        for tracker in self._trackers:
            tracker.close()


@contextmanager
def tracked(run: LocationLike, recipe: Recipe, report: Reporter) -> Iterator[Tracking]:
    """Yields the trackers that a recipe asks for; call `finish` before the block ends without an error.

    Args:
        run: The run's directory, which exists.
        recipe: Of the run.
        report: Gets every event, and the warnings of trackers.
    """
    makers: dict[str, Callable[[], Tracker]] = {}
    if recipe.track.tensorboard:
        makers["TensorBoard"] = lambda: TensorBoardTracker(Location.of(run), recipe)
    if recipe.track.mlflow:
        makers["MLflow"] = lambda: MLflowTracker.start(Location.of(run), recipe)
    tracking = Tracking([Background(name, make, report) for name, make in makers.items()], report)
    try:
        yield tracking
    finally:
        tracking.close()


def tag_published(run: LocationLike, version: str, report: Reporter) -> None:
    """Adds a bundle's version to the MLflow record of its run, if there is one."""
    if not MLflowTracker.has_record(Location.of(run)):
        return
    record = Background("MLflow", lambda: MLflowTracker.resume(Location.of(run)), report)
    record.call(lambda recorder: recorder.tag_bundle(version))
    record.close()
