"""The synthetic log has the size, the dirt, the popularity law and the latent structure that it promises."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ray_recsys.core.executor import SerialExecutor
from ray_recsys.datasets.synthetic import (
    BAD_TIME_S,
    ITEM_SHIFT,
    PRIMARY_SHARE,
    SyntheticLog,
    num_tastes_of,
    synthetic_block,
    user_tastes,
    write_block,
    write_synthetic,
    zipf_ranks,
)
from ray_recsys.errors import StageError

Result = TypeVar("Result")

LOG = SyntheticLog(num_interactions=40_001, num_users=2_000, num_items=1_600, num_files=4, dirty_share=0.1, seed=7)


def whole(log: SyntheticLog) -> pa.Table:
    return pa.concat_tables(synthetic_block(log, block) for block in range(log.num_files))


def test_blocks_hold_all_rows_and_differ_by_one_at_most() -> None:
    rows = [LOG.block_rows(block) for block in range(LOG.num_files)]
    assert sum(rows) == LOG.num_interactions
    assert max(rows) - min(rows) <= 1
    assert [synthetic_block(LOG, b).num_rows for b in range(LOG.num_files)] == rows


def test_a_block_is_a_function_of_seed_and_block(tmp_path: Path) -> None:
    assert write_block(LOG, tmp_path, 2) == LOG.block_rows(2)
    assert pq.read_table(tmp_path / "part-00002.parquet").equals(synthetic_block(LOG, 2))
    assert not synthetic_block(LOG, 1).equals(synthetic_block(LOG, 2))
    assert not synthetic_block(dataclasses.replace(LOG, seed=8), 2).equals(synthetic_block(LOG, 2))


def test_dirty_rows_have_the_share_asked_for() -> None:
    table = whole(LOG)
    each = LOG.num_interactions * LOG.dirty_share / 5
    for name in ("user_id", "item_id", "timestamp"):
        assert table[name].null_count == pytest.approx(each, abs=LOG.num_files)
    assert pc.sum(pc.equal(table["timestamp"], BAD_TIME_S)).as_py() == pytest.approx(each, abs=LOG.num_files)
    timed = table.drop_null().filter(pc.field("timestamp") != BAD_TIME_S)
    num_copies = timed.num_rows - timed.group_by(timed.column_names).aggregate([]).num_rows
    assert num_copies == pytest.approx(each, abs=LOG.num_files + 3)


def test_a_clean_log_has_no_dirty_row() -> None:
    table = whole(dataclasses.replace(LOG, dirty_share=0.0))
    assert sum(column.null_count for column in table.columns) == 0
    assert 0 < pc.min(table["timestamp"]).as_py() <= pc.max(table["timestamp"]).as_py() < BAD_TIME_S


def test_a_fully_dirty_log_is_still_written() -> None:
    assert whole(dataclasses.replace(LOG, dirty_share=1.0)).num_rows == LOG.num_interactions


def test_popularity_is_a_power_law() -> None:
    num_items, shift = 1_000, 1e-3
    ranks = zipf_ranks(np.random.default_rng(0), 400_000, num_items, shift)
    counts = np.bincount(ranks, minlength=num_items)
    x = np.log(np.arange(num_items) + 0.5 + shift * num_items)
    slope, _ = np.polyfit(x, np.log(counts), 1)
    assert slope == pytest.approx(-1.0, abs=0.03)
    assert ranks.min() == 0
    assert ranks.max() == num_items - 1


def test_counts_of_the_log_fall_with_a_power_of_rank() -> None:
    counts = np.sort(pc.value_counts(whole(dataclasses.replace(LOG, dirty_share=0.0))["item_id"]).field(1).to_numpy())
    top_percent = counts[-len(counts) // 100 :].sum() / counts.sum()
    expected = np.log1p(0.01 / ITEM_SHIFT) / np.log1p(1 / ITEM_SHIFT)
    assert top_percent == pytest.approx(expected, abs=0.1)


def test_users_take_items_of_their_tastes_far_more_often_than_chance() -> None:
    log = SyntheticLog(num_interactions=60_000, num_users=300, num_items=320, num_files=1, seed=1)
    num_tastes = num_tastes_of(log.num_items)
    table = synthetic_block(log, 0)
    # Without knowledge of the generator: items of one user are alike, those of a shuffled log are not.
    users, items = (table[c].combine_chunks().dictionary_encode().indices.to_numpy() for c in ("user_id", "item_id"))
    seen = np.zeros((users.max() + 1, items.max() + 1))
    np.add.at(seen, (users, items), 1)
    expected = np.outer(seen.sum(1), seen.sum(0)) / seen.sum()
    residual = (seen - expected) / np.sqrt(expected)
    shuffled = np.zeros_like(seen)
    np.add.at(shuffled, (users, np.random.default_rng(0).permutation(items)), 1)
    noise = np.linalg.svd((shuffled - expected) / np.sqrt(expected), compute_uv=False)[0]
    strong = np.linalg.svd(residual, compute_uv=False)
    assert (strong > 1.5 * noise).sum() >= num_tastes - 4
    assert strong[0] > 3 * noise


def test_tastes_are_spread_over_users() -> None:
    first, second = user_tastes(np.arange(16_000), 16)
    assert np.bincount(first, minlength=16).min() > 850
    assert np.mean(first == second) == pytest.approx(1 / 16, abs=0.01)
    assert PRIMARY_SHARE > 1 / 16


@pytest.mark.parametrize(("num_users", "num_items"), [(1, 1), (2, 3), (5, 17)])
def test_tiny_catalogues_keep_ids_in_range(num_users: int, num_items: int) -> None:
    table = synthetic_block(SyntheticLog(500, num_users, num_items, 1), 0)
    assert set(table["user_id"].to_pylist()) <= {f"u{n}" for n in range(num_users)}
    assert set(table["item_id"].to_pylist()) <= {f"i{n}" for n in range(num_items)}


class LosesATask(SerialExecutor):
    """Yields nothing for the last task."""

    def map(self, task: Callable[[int], Result], num_tasks: int, *, stage: str) -> Iterator[Result]:
        yield from super().map(task, num_tasks - 1, stage=stage)


def test_a_log_that_lacks_rows_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="log: 600 rows were written instead of 900"):
        write_synthetic(tmp_path / "log", LosesATask(), num_interactions=900, num_users=30, num_items=20, num_files=3)
    assert list(tmp_path.iterdir()) == []
