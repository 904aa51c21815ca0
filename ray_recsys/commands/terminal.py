"""Progress on a terminal: a bar over the epochs under the lines of a stage."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from ray_recsys.progress import EpochFinished, Event, Warned, duration


class TerminalReporter:
    """Shows events above a bar that counts epochs; a context that removes the bar at its end.

    Args:
        stage: As each line begins.
        console: Where to write; None: stderr.
    """

    def __init__(self, stage: str, console: Console | None = None) -> None:
        self._stage = stage
        self._start_s = time.monotonic()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("epochs"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"),
            console=console or Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Writes a line, and moves the bar if an epoch is over."""
        elapsed_s = time.monotonic() - self._start_s
        style = "yellow" if isinstance(event, Warned) else None
        line = f"[{self._stage:<9}{elapsed_s:6.1f} s] {event}"
        self._bars.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
        if isinstance(event, EpochFinished):
            self._move(event)

    def _move(self, event: EpochFinished) -> None:
        if event.stage not in self._tasks:
            for earlier in self._tasks.values():  # which may have stopped early
                self._bars.remove_task(earlier)
            self._tasks = {event.stage: self._bars.add_task(event.stage, total=event.num_epochs, state="")}
            self._bars.start()
        left = "" if event.most_s_left is None else f"at most {duration(event.most_s_left)} left"
        self._bars.update(self._tasks[event.stage], completed=event.epoch, state=left)
        self._bars.refresh()
        if event.epoch == event.num_epochs:
            self._bars.stop()
