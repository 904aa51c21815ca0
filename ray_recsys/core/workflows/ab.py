"""Analysis of an A/B test: how users of each arm responded to their recommendations.

An impression hits if its user interacts with one of its items within a window after it; a user's value is the share of
the impressions that hit, so that a user of many requests counts once. Intervals are those of a bootstrap over users
(see `evaluation.bootstrap`); the arms have different users, so their resamples are independent.

Users are read in groups by a hash of their id, so that one group of impressions and of the log is in memory at a time.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from pydantic import BaseModel, ConfigDict

from ray_recsys.core.arrays import Bools, Float64s, Int64s
from ray_recsys.core.evaluation.bootstrap import Interval, ResampledSums, user_weights
from ray_recsys.core.executor import Executor
from ray_recsys.errors import DataError
from ray_recsys.storage.files import is_file
from ray_recsys.storage.location import Location, LocationLike

NUM_RESAMPLES = 1000
IMPRESSIONS_PER_GROUP = 200_000
_COLUMNS = ("time", "arm", "user_id", "item_ids")
HITS = "hits"


class ArmResult(BaseModel):
    """One arm's users."""

    model_config = ConfigDict(frozen=True)

    arm: str
    num_users: int
    num_impressions: int
    num_hits: int
    hit_rate: Interval
    """Mean over users of the share of their impressions that hit."""
    difference: Interval | None
    """From arm A; None: it is A, or A has no users."""


class AbResult(BaseModel):
    """The arms of an experiment."""

    model_config = ConfigDict(frozen=True)

    arms: list[ArmResult]
    window_days: float
    num_anonymous: int
    """Impressions without a user, which belong to no arm."""
    num_moved: int
    """Impressions of users seen in several arms, because percentages changed; they are left out."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Sums of a group of users by arm."""

    counts: dict[str, Int64s]
    """Users, impressions, hits."""
    sums: dict[str, ResampledSums]
    values: dict[str, float]
    num_moved: int


@dataclass(frozen=True, slots=True)
class LogColumns:
    """Names of the log's columns."""

    user: str
    item: str
    time: str


def compare_arms(
    impressions: LocationLike,
    log: Sequence[LocationLike],
    columns: LogColumns,
    executor: Executor,
    *,
    window_days: float = 7.0,
    seed: int = 0,
) -> AbResult:
    """Compares the arms of an experiment.

    Args:
        impressions: The directory that the service wrote.
        log: Parquet or CSV files of interactions.
        columns: Their columns; times are timestamps, or seconds since 1970.
        executor: Runs a task per group of users.
        window_days: An interaction counts this long after its impression.
        seed: Of the bootstrap.

    Raises:
        DataError: There are no impressions, or a file lacks a column.
    """
    shown = _dataset([impressions], _COLUMNS)
    _dataset(log, (columns.user, columns.item, columns.time))
    num_rows = shown.count_rows()
    if not num_rows:
        raise DataError(f"{impressions} has no impressions", remedy="set serve.impressions and wait for requests")
    num_groups = -(-num_rows // IMPRESSIONS_PER_GROUP)
    task = _ReadGroup(impressions, tuple(log), columns, num_groups, window_days, seed)
    groups = list(executor.map(task, num_groups, stage=f"reading {impressions}"))
    num_anonymous = shown.count_rows(filter=pc.field("user_id").is_null())
    arms = sorted({arm for group in groups for arm in group.counts})
    means = {arm: _resampled(groups, arm) for arm in arms}
    return AbResult(
        arms=[_result(groups, arm, means) for arm in arms],
        window_days=window_days,
        num_anonymous=num_anonymous,
        num_moved=sum(group.num_moved for group in groups),
    )


def _resampled(groups: Sequence[_Group], arm: str) -> Float64s:
    parts = [group.sums[arm] for group in groups if arm in group.sums]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.means()[HITS]


def _result(groups: Sequence[_Group], arm: str, means: dict[str, Float64s]) -> ArmResult:
    value = _mean(groups, arm)
    other = None
    if arm != "A" and "A" in means:
        other = Interval.of(value - _mean(groups, "A"), means[arm] - means["A"])
    counts = np.sum([group.counts[arm] for group in groups if arm in group.counts], axis=0)
    num_users, num_impressions, num_hits = counts.tolist()
    return ArmResult(
        arm=arm,
        num_users=num_users,
        num_impressions=num_impressions,
        num_hits=num_hits,
        hit_rate=Interval.of(value, means[arm]),
        difference=other,
    )


def _mean(groups: Sequence[_Group], arm: str) -> float:
    return sum(group.values.get(arm, 0.0) for group in groups) / sum(
        int(group.counts[arm][0]) for group in groups if arm in group.counts
    )


@dataclass(frozen=True, slots=True)
class _ReadGroup:
    impressions: LocationLike
    log: tuple[LocationLike, ...]
    columns: LogColumns
    num_groups: int
    window_days: float
    seed: int

    def __call__(self, number: int) -> _Group:
        """Returns the sums of a group's users."""
        shown = self._rows(_dataset([self.impressions], _COLUMNS), _COLUMNS, "user_id", number)
        names = (self.columns.user, self.columns.item, self.columns.time)
        done = self._rows(_dataset(self.log, names), names, self.columns.user, number)
        users = shown["user_id"].combine_chunks().dictionary_encode()
        user_idx, arms = users.indices.to_numpy(), shown["arm"].combine_chunks().dictionary_encode()
        arm_of, has_moved = _arm_of_users(user_idx, arms.indices.to_numpy(), len(users.dictionary))
        is_hit = self._hits(shown, user_idx, users.dictionary, done)
        num_shown = np.bincount(user_idx, minlength=len(users.dictionary))
        num_hits = np.bincount(user_idx, weights=is_hit, minlength=len(users.dictionary))
        weights = user_weights(_hashes(users.dictionary).view(np.int64), NUM_RESAMPLES, self.seed)
        counts, sums, values = {}, {}, {}
        for number_of_arm, arm in enumerate(arms.dictionary.to_pylist()):
            own = (arm_of == number_of_arm) & ~has_moved
            if not own.any():
                continue
            rates = num_hits[own] / num_shown[own]
            counts[arm] = np.array([own.sum(), num_shown[own].sum(), num_hits[own].sum()], np.int64)
            sums[arm] = ResampledSums.of({HITS: rates}, weights[:, own])
            values[arm] = float(rates.sum())
        return _Group(counts, sums, values, int(num_shown[has_moved].sum()))

    def _rows(self, dataset: ds.Dataset, names: Sequence[str], user: str, number: int) -> pa.Table:
        """Returns the rows of the group's users, those without a user left out."""
        parts = [_of_group(batch, user, number, self.num_groups) for batch in dataset.to_batches(columns=list(names))]
        return pa.Table.from_batches([part for part in parts if part.num_rows] or parts[:1])

    def _hits(self, shown: pa.Table, user_idx: Int64s, users: pa.Array, done: pa.Table) -> Bools:
        """Returns whether each impression's user interacted with an item of it within the window."""
        items = shown["item_ids"].combine_chunks()
        rows = pc.list_parent_indices(items).to_numpy()
        pairs = pa.table({"user": pa.array(user_idx[rows]), "item": pc.list_flatten(items), "row": pa.array(rows)})
        log = pa.table(
            {
                "user": pc.index_in(done[self.columns.user].cast(pa.string()), users).cast(pa.int64()),
                "item": done[self.columns.item].cast(pa.string()),
                "done_us": _microseconds(done[self.columns.time]),
            }
        ).filter(pc.field("user").is_valid())
        pairs = pairs.set_column(0, "user", pairs["user"].cast(pa.int64()))
        joined = pairs.join(log, keys=["user", "item"], join_type="inner")
        row = joined["row"].to_numpy()
        shown_us = shown["time"].cast(pa.int64()).to_numpy()[row]
        wait_us = joined["done_us"].to_numpy() - shown_us
        is_hit = np.zeros(len(shown), np.bool_)
        is_hit[row[(wait_us >= 0) & (wait_us <= self.window_days * 86_400e6)]] = True
        return is_hit


def _arm_of_users(user_idx: Int64s, arms: Int64s, num_users: int) -> tuple[Int64s, Bools]:
    """Returns the first arm of each user, and who was in more than one."""
    first = np.full(num_users, -1, np.int64)
    first[user_idx[::-1]] = arms[::-1]
    has_moved = np.zeros(num_users, np.bool_)
    has_moved[user_idx[arms != first[user_idx]]] = True
    return first, has_moved


def _of_group(batch: pa.RecordBatch, user: str, number: int, num_groups: int) -> pa.RecordBatch:
    batch = batch.filter(pc.is_valid(batch[user]))
    encoded = batch[user].cast(pa.string()).dictionary_encode()
    is_own = _hashes(encoded.dictionary) % np.uint64(num_groups) == number
    return batch.filter(pa.array(is_own[encoded.indices.to_numpy()]) if len(batch) else pa.array([], pa.bool_()))


def _hashes(ids: pa.Array) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
    digests: Iterator[bytes] = (
        hashlib.blake2b(one.encode("utf8", "surrogatepass"), digest_size=8, person=b"ab").digest()
        for one in ids.to_pylist()
    )
    return np.frombuffer(b"".join(digests), np.uint64)


def _microseconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(times.type):
        return times.cast(pa.timestamp("us", times.type.tz)).cast(pa.int64())
    return pc.multiply(times.cast(pa.float64()), 1e6).cast(pa.int64(), safe=False)


def _dataset(paths: Sequence[LocationLike], columns: Sequence[str]) -> ds.Dataset:
    locations = [Location.of(path) for path in paths]
    try:
        filesystem, first = locations[0].resolve()
        if len(locations) == 1 and not is_file(locations[0]):
            dataset = ds.dataset(
                first, format="parquet", filesystem=filesystem, partitioning="hive", ignore_prefixes=["."]
            )
        else:
            kind = "csv" if locations[0].suffix == ".csv" else "parquet"
            dataset = ds.dataset([at.resolve()[1] for at in locations], format=kind, filesystem=filesystem)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{paths[0]} cannot be read ({error})") from error
    missing = [name for name in columns if name not in dataset.schema.names]
    if missing:
        found = ", ".join(dataset.schema.names)
        raise DataError(f"{paths[0]} has no column {', '.join(missing)} (columns found: {found})")
    return dataset
