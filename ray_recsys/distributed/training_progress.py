"""Tells the driver of epochs while Ray Train runs, by the file that the first worker writes after each.

Workers' own output is silenced; the run's directory is storage that all of them see anyway.
"""

import csv
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray_recsys.progress import Reporter

_POLL_S = 0.2
METRIC = "NDCG@10"


@contextmanager
def watching(curves: Path, report: Reporter) -> Iterator[None]:
    """Reports each new line of the curves, which the first worker writes, while the block runs."""
    is_over = threading.Event()
    num_known = len(_read_curves(curves))

    def follow() -> None:
        nonlocal num_known
        while True:
            was_over = is_over.wait(_POLL_S)
            rows = _read_curves(curves)
            if len(rows) < num_known:
                report(f"a worker was lost: trained again from epoch {len(rows)}")
                num_known = len(rows)
            for row in rows[num_known:]:
                report(_describe(row))
            num_known = len(rows)
            if was_over:
                return

    thread = threading.Thread(target=follow, name="curves", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _read_curves(curves: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(curves.read_text(encoding="utf8").splitlines()))
    except FileNotFoundError:
        return []


def _describe(row: dict[str, str]) -> str:
    metric = f", validation {METRIC} {float(row[METRIC]):.4f}" if row.get(METRIC) else ""
    return f"epoch {row['epoch']}: loss {float(row['loss']):.4f}{metric}, {float(row['samples_per_s']):,.0f} samples/s"
