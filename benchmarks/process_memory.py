"""Peak memory of a process and all its descendants, sampled while they run (Linux).

Resident = proportional share of private and file pages (`Pss_Anon + Pss_File` of smaps_rollup) of every process, plus
what shared memory grew by (`/dev/shm`), which is where Ray's object store lives. So nothing is counted twice, and pages
of the store stay counted when the process that wrote them has ended. The page cache is the kernel's and not counted.
"""

import shutil
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

_PERIOD_S = 0.5  # a sample takes 20 ms of a core
_COUNTED = ("Pss_Anon:", "Pss_File:")


@dataclass(slots=True)
class MemoryPeaks:
    """Bytes at their highest; peaks of different columns need not fall on one moment."""

    total: int = 0
    shared: int = 0
    by_name: Counter[str] = field(default_factory=Counter)
    """The largest single process of each kind."""
    num_processes: int = 0


class MemorySampler:
    """Samples a process tree from `start` to the end of the block."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._shared_at_start = shutil.disk_usage("/dev/shm").used
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peaks = MemoryPeaks()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(_PERIOD_S):
            self._sample()

    def _sample(self) -> None:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        sizes = {process: _resident_bytes(process.pid) for process in processes}
        shared = max(0, shutil.disk_usage("/dev/shm").used - self._shared_at_start)
        peaks = self.peaks
        peaks.total = max(peaks.total, sum(sizes.values()) + shared)
        peaks.shared = max(peaks.shared, shared)
        peaks.num_processes = max(peaks.num_processes, len(sizes))
        for process, size in sizes.items():
            name = _kind(process)
            peaks.by_name[name] = max(peaks.by_name[name], size)


def _resident_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # it has just ended
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(_COUNTED))


def _kind(process: psutil.Process) -> str:
    try:
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return "ended"
    name = Path(words[0].split()[0]).name if words and words[0] else "ended"
    if name.startswith("ray::"):
        return "worker"
    return "driver" if name.startswith("python") and "benchmarks.prepare_scale_run" in words else name.rstrip(":")
