"""Synthetic interaction logs of any size, one task per file: each file is a pure function of (log, number).

Users and items follow a shifted Zipf law. Every user has a mixture of a few tastes and every item belongs to one, so
that the matrix P(item | user) has the number of tastes as its rank and a factor model can learn it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ray_recsys.core.arrays import Bools, Int64s
from ray_recsys.core.artifact_writer import atomic_directory
from ray_recsys.core.counter_random import splitmix64
from ray_recsys.core.executor import Executor
from ray_recsys.errors import StageError
from ray_recsys.progress import Reporter, silent

NUM_TASTES = 16
PRIMARY_SHARE, SECONDARY_SHARE = 0.6, 0.25
"""Shares of a user's interactions that follow the first and the second taste; the rest follow a random one."""
USER_SHIFT, ITEM_SHIFT = 1e-3, 1e-4
"""Shift of the Zipf law as a share of all users (of a taste's items); smaller is more skewed."""
START_S, SPAN_S = 1_600_000_000, 3 * 365 * 86_400
DIRT = ("null_user", "null_item", "null_time", "bad_time", "duplicate")
"""Faults of dirty rows; each fault gets an equal share of them."""
BAD_TIME_S = 2**63 - 1  # out of range in every unit
ROWS_PER_FILE = 1_000_000


@dataclass(frozen=True, slots=True)
class SyntheticLog:
    """Shape of a log; `num_users` and `num_items` can occur, and a short log may lack some."""

    num_interactions: int
    num_users: int
    num_items: int
    num_files: int
    dirty_share: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        assert min(self.num_interactions, self.num_users, self.num_items, self.num_files) > 0, self
        assert 0.0 <= self.dirty_share <= 1.0, self

    def block_rows(self, block: int) -> int:
        """Returns the number of rows of a block; blocks differ by at most one row."""
        start, end = (self.num_interactions * b // self.num_files for b in (block, block + 1))
        return end - start


def write_synthetic(
    output: Path,
    executor: Executor,
    *,
    num_interactions: int,
    num_users: int,
    num_items: int,
    num_files: int | None = None,
    dirty_share: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    report: Reporter = silent,
) -> SyntheticLog:
    """Writes a log as a folder of Parquet files; the same bytes with any executor.

    Args:
        output: Folder that appears once the log is complete.
        executor: Runs the tasks.
        num_interactions: Total number of rows, including dirty ones.
        num_users: Number of users that can occur.
        num_items: Number of items that can occur.
        num_files: None: one file per million rows.
        dirty_share: Share of rows with a null id, a missing or bad time, or that repeat another row.
        seed: Another seed gives another log.
        overwrite: Whether an existing folder is replaced.
        report: Receives progress.

    Raises:
        ArtifactError: `output` exists and `overwrite` is false.
        StageError: A task wrote a wrong number of rows.
    """
    files = num_files or -(-num_interactions // ROWS_PER_FILE)
    log = SyntheticLog(num_interactions, num_users, num_items, files, dirty_share, seed)
    report(f"writing {num_interactions:,} interactions to {files:,} files")
    with atomic_directory(output, overwrite=overwrite) as staging:
        written = sum(executor.map(partial(write_block, log, staging), files, stage=f"writing {output}"))
        if written != num_interactions:
            raise StageError(f"{output}: {written:,} rows were written instead of {num_interactions:,}")
    report(f"wrote {written:,} interactions")
    return log


def synthetic_block(log: SyntheticLog, block: int) -> pa.Table:
    """Returns a block's rows: user_id and item_id as strings, timestamp as int64 seconds; unordered."""
    rng = np.random.Generator(np.random.SFC64([log.seed, block]))
    num_rows = log.block_rows(block)
    users = zipf_ranks(rng, num_rows, log.num_users, USER_SHIFT)
    items = _draw_items(rng, users, log)
    times = _draw_times(rng, users)
    users, items, times, masks = _soil(rng, users, items, times, log.dirty_share)
    return pa.table(
        {
            "user_id": _ids("u", _scramble(users, log.num_users), masks["null_user"]),
            "item_id": _ids("i", _scramble(items, log.num_items), masks["null_item"]),
            "timestamp": pa.array(times, pa.int64(), mask=masks["null_time"]),
        }
    )


def write_block(log: SyntheticLog, directory: Path, block: int) -> int:
    """Writes a block as `part-<block>.parquet`; returns its number of rows."""
    table = synthetic_block(log, block)
    pq.write_table(table, directory / f"part-{block:05d}.parquet", compression="zstd", compression_level=1)
    return int(table.num_rows)


def zipf_ranks(rng: np.random.Generator, num_draws: int, num_ranks: int, shift: float) -> Int64s:
    """Returns ranks drawn with P(rank) proportional to 1 / (rank + shift * num_ranks), int64[num_draws].

    Source: inverse of the cumulative Zipf-Mandelbrot law with exponent 1, taken as continuous.
    """
    quantile = shift * (np.exp(rng.random(num_draws) * np.log1p(1.0 / shift)) - 1.0)
    ranks: Int64s = np.minimum((quantile * num_ranks).astype(np.int64), num_ranks - 1)
    return ranks


def user_tastes(users: Int64s, num_tastes: int) -> tuple[Int64s, Int64s]:
    """Returns the first and the second taste of users, given by rank, int64[n] each; a function of the user alone."""
    bits, divisor = splitmix64(users.astype(np.uint64)), np.uint64(num_tastes)
    return (bits % divisor).astype(np.int64), ((bits >> np.uint64(32)) % divisor).astype(np.int64)


def num_tastes_of(num_items: int) -> int:
    """Returns the number of tastes of a catalogue; the item of rank r belongs to taste r modulo this."""
    return min(NUM_TASTES, num_items)


def _draw_items(rng: np.random.Generator, users: Int64s, log: SyntheticLog) -> Int64s:
    num_tastes = num_tastes_of(log.num_items)
    first, second = user_tastes(users, num_tastes)
    choice = rng.random(len(users))
    any_taste = rng.integers(0, num_tastes, len(users))
    taste = np.where(
        choice < PRIMARY_SHARE, first, np.where(choice < PRIMARY_SHARE + SECONDARY_SHARE, second, any_taste)
    )
    ranks = zipf_ranks(rng, len(users), -(-log.num_items // num_tastes), ITEM_SHIFT)
    items = ranks * num_tastes + taste
    return np.where(items < log.num_items, items, taste)


def _draw_times(rng: np.random.Generator, users: Int64s) -> Int64s:
    """Returns times between each user's own first moment and the end."""
    joined = (splitmix64((users + 1_000_003).astype(np.uint64)) >> np.uint64(11)).astype(np.float64) / 2.0**53
    times: Int64s = (START_S + SPAN_S * (joined + (1.0 - joined) * rng.random(len(users)))).astype(np.int64)
    return times


def _soil(
    rng: np.random.Generator, users: Int64s, items: Int64s, times: Int64s, dirty_share: float
) -> tuple[Int64s, Int64s, Int64s, dict[str, Bools]]:
    masks = {kind: np.zeros(len(users), np.bool_) for kind in DIRT}
    num_dirty = min(round(len(users) * dirty_share), len(users))
    dirty = rng.choice(len(users), num_dirty, replace=False) if num_dirty else np.zeros(0, np.int64)
    for kind, rows in zip(DIRT, np.array_split(dirty, len(DIRT)), strict=True):
        masks[kind][rows] = True
    copies = np.flatnonzero(masks["duplicate"])
    clean = np.delete(np.arange(len(users)), dirty)
    if len(copies) and len(clean):
        copied = clean[rng.integers(0, len(clean), len(copies))]
        for column in (users, items, times):
            column[copies] = column[copied]
    times[masks["bad_time"]] = BAD_TIME_S
    return users, items, times, masks


def _ids(prefix: str, numbers: Int64s, is_null: Bools) -> Any:
    digits = pa.array(numbers, mask=is_null).cast(pa.string())
    return pc.binary_join_element_wise(prefix, digits, "")


def _scramble(ranks: Int64s, num_ranks: int) -> Int64s:
    """Applies a permutation of [0, num_ranks), so that an id does not reveal its popularity."""
    factor = next(f for f in (2_654_435_761, 40_503, 1_000_003, 1) if np.gcd(f, num_ranks) == 1)
    scrambled: Int64s = (ranks * (factor % num_ranks)) % num_ranks
    return scrambled
