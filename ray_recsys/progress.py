"""Progress of a stage as events; a reporter shows them.

An event is a line of text, or a dataclass whose `str()` is that line, so that a reporter may draw more than the line.
"""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EpochFinished:
    """An epoch of training is over."""

    epoch: int
    """Counted from 1."""
    num_epochs: int
    """Epochs at most; early stopping may end the run before."""
    loss: float
    samples_per_s: float
    metric: str | None = None
    """Label of the validation metric that decides, e.g. NDCG@10; None without validation."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All validation metrics; empty without validation."""
    seconds: float | None = None
    """Of the epoch, validation included; None: not measured."""
    stage: str = "train"
    """`train`, `refit`, or that of a branch which is trained first; each counts its epochs from 1."""

    @property
    def most_s_left(self) -> float | None:
        """Seconds until the last epoch ends, if early stopping does not end the run before; None: not known."""
        num_left = self.num_epochs - self.epoch
        return num_left * self.seconds if self.seconds and num_left > 0 else None

    def __str__(self) -> str:
        validation = f", validation {self.metric} {self.metrics[self.metric]:.4f}" if self.metric else ""
        line = f"epoch {self.epoch}: loss {self.loss:.4f}{validation}, {self.samples_per_s:,.0f} samples/s"
        return f"{line}, at most {duration(self.most_s_left)} left" if self.most_s_left else line


def duration(seconds: float) -> str:
    """Returns a duration as text, in the fitting unit."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"


@dataclass(frozen=True, slots=True)
class TrainingRestarted:
    """Workers were lost and replaced; training resumes from the newest checkpoint."""

    epoch: int
    """The last finished one."""
    step: int = 0
    """Of the epoch after it: the steps that need not be repeated."""

    def __str__(self) -> str:
        step = f", step {self.step} of the next" if self.step else ""
        return f"a worker was lost; resumed after epoch {self.epoch}{step}"


@dataclass(frozen=True, slots=True)
class Warned:
    """A warning: the stage continues."""

    message: str

    def __str__(self) -> str:
        return f"warning: {self.message}"


Event = str | EpochFinished | TrainingRestarted | Warned
Reporter = Callable[[Event], None]


def silent(_: Event) -> None:
    """Reports nothing."""


class StderrReporter:
    """Writes `[stage  12.3 s] message` lines to stderr; times count from the start of the stage."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._start_s = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Writes one line."""
        elapsed_s = time.monotonic() - self._start_s
        sys.stderr.write(f"[{self._stage:<9}{elapsed_s:6.1f} s] {event}\n")
        sys.stderr.flush()
