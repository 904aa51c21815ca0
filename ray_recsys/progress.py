"""Where a stage tells how far it is: one clean line a step, on stderr or nowhere.

Stages take a `Reporter` as their last argument; it is a plain callable, so that tests pass `list.append`.
"""

import sys
import time
from collections.abc import Callable

Reporter = Callable[[str], None]


def silent(_: str) -> None:
    """Reports nowhere."""


class StderrReporter:
    """Writes `[stage  12.3 s] message` lines to stderr; times count from the stage's start."""

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._start_s = time.monotonic()

    def __call__(self, message: str) -> None:
        """Writes one line."""
        elapsed_s = time.monotonic() - self._start_s
        sys.stderr.write(f"[{self._stage:<9}{elapsed_s:6.1f} s] {message}\n")
        sys.stderr.flush()
