"""Impressions: the items shown to each user and their arm, as Parquet files for `ray-recsys ab`.

    DIR/date=2026-11-24/hour=20/20261124T205102-4f1e….parquet

Rows wait in memory, at most `MAX_WAITING`, and are written every `FLUSH_S` seconds and when the replica stops. Rows
that cannot be written, because the disk is full or the directory has reached its limit, are dropped and counted:
responses never wait for them.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ray_recsys.core.vocabulary import ExternalId

MAX_WAITING = 20_000
FLUSH_S = 20.0
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("time", pa.timestamp("us", "UTC")),
        ("arm", pa.string()),
        ("version", pa.string()),
        ("user_id", pa.string()),
        ("source", pa.string()),
        ("item_ids", pa.list_(pa.string())),
    ]
)
"""Ids as text; `item_ids` best first, so that an item's rank is its position."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Impression:
    """One answer; fields as in `SCHEMA`."""

    request_id: str
    time_s: float
    arm: str
    version: str
    user_id: ExternalId | None
    source: str
    item_ids: Sequence[ExternalId]


class ImpressionSink:
    """Takes impressions on the event loop and writes them in a thread.

    Args:
        directory: Where files are written; made if needed.
        max_bytes: Size of all files in it, of all replicas, above which impressions are dropped.
    """

    def __init__(self, directory: Path, max_bytes: float) -> None:
        self._directory, self._max_bytes = directory, max_bytes
        self._waiting: list[Impression] = []
        self._flushing: asyncio.Task[None] | None = None
        self.num_written = 0
        self.num_dropped = 0

    def add(self, impression: Impression) -> None:
        """Takes an impression, or counts it as dropped if too many wait."""
        if len(self._waiting) >= MAX_WAITING:
            self.num_dropped += 1
        else:
            self._waiting.append(impression)

    def start(self) -> None:
        """Writes every `FLUSH_S` seconds on the running event loop until `stop`."""
        self._flushing = asyncio.get_running_loop().create_task(self._flush_repeatedly())

    def stop(self) -> None:
        """Stops, and writes pending rows."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._write(self._take())

    async def _flush_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await asyncio.to_thread(self._write, self._take())

    def _take(self) -> list[Impression]:
        taken, self._waiting = self._waiting, []
        return taken

    def _write(self, rows: list[Impression]) -> None:
        if not rows:
            return
        by_hour: dict[tuple[str, str], list[Impression]] = {}
        for row in rows:
            at = datetime.fromtimestamp(row.time_s, UTC)
            by_hour.setdefault((f"{at:%Y-%m-%d}", f"{at:%H}"), []).append(row)
        for (date, hour), part in by_hour.items():
            try:
                if self._size() >= self._max_bytes:
                    raise OSError(f"serve.impressions_max_gb is reached: {self._max_bytes / 1e9:g} GB")
                _write_file(self._directory / f"date={date}" / f"hour={hour}", part)
            except (OSError, ValueError) as error:  # ValueError: an id that is no UTF-8
                self.num_dropped += len(part)
                logger.error("%d impressions dropped: %s", len(part), error)
            else:
                self.num_written += len(part)

    def _size(self) -> int:
        return sum(path.stat().st_size for path in self._directory.rglob("*.parquet"))


def _write_file(directory: Path, rows: Sequence[Impression]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    columns = [
        [row.request_id for row in rows],
        [int(row.time_s * 1e6) for row in rows],
        [row.arm for row in rows],
        [row.version for row in rows],
        [None if row.user_id is None else str(row.user_id) for row in rows],
        [row.source for row in rows],
        [[str(item_id) for item_id in row.item_ids] for row in rows],
    ]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)]
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:12]}"
    unfinished = directory / f".{name}.tmp"
    try:
        pq.write_table(pa.table(arrays, schema=SCHEMA), unfinished, compression="zstd")
        unfinished.rename(directory / f"{name}.parquet")
    finally:
        unfinished.unlink(missing_ok=True)
