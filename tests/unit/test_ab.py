"""The result of an experiment, on impressions and interactions whose hits are counted by hand."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.workflows import ab
from ray_recsys.core.workflows.ab import AbResult, LogColumns, compare_arms
from ray_recsys.errors import DataError
from ray_recsys.serving.impressions import Impression, ImpressionSink

COLUMNS = LogColumns("user_id", "item_id", "timestamp")
START_S = 1_700_000_000.0
DAY_S = 86_400.0


def _write(directory: Path, rows: list[tuple[int | None, str, float, list[int]]]) -> None:
    sink = ImpressionSink(directory, max_bytes=1e9)
    for number, (user, arm, day, items) in enumerate(rows):
        sink.add(Impression(f"r-{number}", START_S + day * DAY_S, arm, "v", user, "two-stage", items))
    sink.stop()
    assert sink.num_written == len(rows)


def _log(path: Path, rows: list[tuple[int, int, float]]) -> Path:
    users, items, days = (list(column) for column in zip(*rows, strict=True))
    times = [int(START_S + day * DAY_S) for day in days]
    pq.write_table(pa.table({"user_id": users, "item_id": items, "timestamp": times}), path)
    return path


def _compare(tmp_path: Path, log: Path) -> AbResult:
    return compare_arms(tmp_path / "seen", [log], COLUMNS, SerialExecutor())


@pytest.mark.parametrize("per_group", [2, 200_000])
def test_hits_are_counted_by_user_within_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_group: int
) -> None:
    monkeypatch.setattr(ab, "IMPRESSIONS_PER_GROUP", per_group)
    _write(
        tmp_path / "seen",
        [
            (1, "A", 0, [10, 11]),  # chosen 11 a day later: a hit
            (1, "A", 2, [10, 12]),  # 12 was chosen before: none
            (2, "A", 0, [10]),  # chosen 8 days later: none
            (3, "B", 0, [10, 13]),  # a hit
            (4, "B", 0, [14]),  # another user chose 14: none
            (5, "A", 0, [10]),
            (5, "B", 1, [10]),  # moved
            (None, "A", 0, [10]),
        ],
    )
    log = _log(tmp_path / "log.parquet", [(1, 11, 1), (1, 12, 1), (2, 10, 8), (3, 13, 7), (9, 14, 1), (5, 10, 2)])
    result = _compare(tmp_path, log)
    found = {arm.arm: (arm.num_users, arm.num_impressions, arm.num_hits, arm.hit_rate.value) for arm in result.arms}
    assert found == {"A": (2, 3, 1, 0.25), "B": (2, 2, 1, 0.5)}
    assert (result.num_anonymous, result.num_moved) == (1, 2)
    difference = result.arms[1].difference
    assert difference is not None
    assert difference.value == pytest.approx(0.25)
    assert result.arms[0].difference is None


def test_the_interval_covers_the_difference_that_was_put_in(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rates = {"A": 0.2, "B": 0.35}
    users = [(user, "B" if user % 2 else "A") for user in range(3000)]
    _write(tmp_path / "seen", [(user, arm, 0, [1]) for user, arm in users])
    chosen = [(user, 1, 1.0) for user, arm in users if rng.random() < rates[arm]]
    start_s = time.perf_counter()
    result = _compare(tmp_path, _log(tmp_path / "log.parquet", chosen))
    assert time.perf_counter() - start_s < 20
    difference = result.arms[1].difference
    assert difference is not None
    assert difference.low < 0.15 < difference.high
    assert 0.04 < difference.high - difference.low < 0.08  # 4 standard errors: 2 x 1.96 x sqrt(.16/1500 + .2275/1500)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    log = _log(tmp_path / "log.parquet", [(1, 1, 1)])
    with pytest.raises(DataError):
        _compare(tmp_path, log)
    _write(tmp_path / "seen", [(1, "A", 0, [1])])
    with pytest.raises(DataError, match="no column when"):
        compare_arms(tmp_path / "seen", [log], LogColumns("user_id", "item_id", "when"), SerialExecutor())
