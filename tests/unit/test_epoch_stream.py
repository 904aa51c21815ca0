"""Batches of an epoch: the same whatever the layout, read ahead in bounded memory."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece, Window
from ray_recsys.core.sampling.epoch_stream import Batch, EpochStream, Prefetched, WindowReader, WindowSamples
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.window_readers import HistoryReader, local_feed
from tests.factories import make_prepared_set


def samples_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    """(user, positive, *negatives) of all samples, sorted."""
    rows = [np.concatenate([b.user_idx[:, None], b.item_idx], axis=1) for b in batches]
    return sorted(map(tuple, np.concatenate(rows).tolist()))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize(("num_partitions", "window"), [(1, 10**6), (4, 150), (5, 1)])
def test_every_interaction_comes_once_under_any_layout(
    tmp_path: Path, world_size: int, num_partitions: int, window: int
) -> None:
    recipe = load_recipe(None, ["train.batch_size=50", f"feed.window_interactions={window}"])
    prepared = make_prepared_set(tmp_path / "data", num_partitions=num_partitions)
    one = make_prepared_set(tmp_path / "one", num_partitions=1)
    streams = [local_feed(prepared, recipe, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in (1, 2):
        ranks = [list(stream.batches(epoch)) for stream in streams]
        assert {len(batches) for batches in ranks} == {-(-prepared.manifest.num_training // 50)}
        for step in zip(*ranks, strict=True):
            assert {batch.global_batch_size for batch in step} == {sum(len(batch.user_idx) for batch in step)}
        whole = list(local_feed(one, load_recipe(None, ["train.batch_size=50"])).batches(epoch))
        assert samples_of([b for batches in ranks for b in batches]) == samples_of(whole)
    for stream in streams:
        stream.close()


@pytest.mark.parametrize("rank", [0, 2])
def test_an_epoch_resumes_at_any_step(tmp_path: Path, rank: int) -> None:
    recipe = load_recipe(None, ["train.batch_size=20", "feed.window_interactions=120"])
    prepared = make_prepared_set(tmp_path / "data", num_partitions=5)
    whole = list(local_feed(prepared, recipe, rank=rank, world_size=3).batches(3))
    for first_step in (0, 1, 7, len(whole) - 1, len(whole)):
        rest = list(local_feed(prepared, recipe, rank=rank, world_size=3).batches(3, first_step))
        assert len(rest) == len(whole) - first_step
        for batch, expected in zip(rest, whole[first_step:], strict=True):
            np.testing.assert_array_equal(batch.user_idx, expected.user_idx)
            np.testing.assert_array_equal(batch.item_idx, expected.item_idx)
            assert batch.global_batch_size == expected.global_batch_size


def test_windows_that_end_before_the_first_step_are_not_read(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["train.batch_size=20", "feed.window_interactions=120"])
    prepared = make_prepared_set(tmp_path / "data", num_partitions=5)
    whole = local_feed(prepared, recipe)
    num_read: list[int] = []

    def read(epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        num_read.append(len(windows))
        return whole._read(epoch, windows)

    num_windows = len(whole.plan.windows(20))
    list(EpochStream(whole.plan, read, recipe).batches(20, whole.plan.num_steps - 1))  # the last: nothing is ahead
    assert num_read == [1]
    assert num_windows > 2


def test_users_are_shuffled_anew_each_epoch(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=300)
    first, second = (
        np.concatenate([b.user_idx for b in local_feed(prepared, Recipe()).batches(epoch)]) for epoch in (1, 2)
    )
    assert np.mean(first == second) < 0.05
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.1


@pytest.mark.parametrize(("window", "num_reads"), [(10**6, 1), (150, 2)])
def test_what_fits_into_a_window_is_read_once(tmp_path: Path, window: int, num_reads: int) -> None:
    recipe = load_recipe(None, ["train.epochs=2", f"feed.window_interactions={window}"])
    prepared = make_prepared_set(tmp_path / "data", num_partitions=4)
    plan = EpochPlan.make([info.num_training for info in prepared.manifest.partitions], recipe, rank=0, world_size=1)
    were_read: list[int] = []

    def read(pieces: Sequence[Piece]) -> Iterator[pa.Table]:
        for piece in pieces:
            were_read.append(piece.partition)
            yield prepared.read_columns(piece.partition, ["user_idx", "item_idx"])

    source = HistoryReader(plan, NegativeSampler.from_recipe(recipe, prepared.item_counts()), recipe, read)
    for epoch in (1, 2):
        assert sum(1 for _ in source(epoch, plan.windows(epoch))) == len(plan.windows(epoch))
    assert sorted(were_read) == sorted([*range(4)] * num_reads)


def test_held_out_items_are_excluded_on_request(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_items=16, num_partitions=1)
    histories = prepared.read_partition(0)
    held_out = np.stack([histories.validation.item_idx, histories.test.item_idx], axis=1)
    for setting, is_free in (("true", True), ("false", False)):
        batches = local_feed(prepared, load_recipe(None, [f"feed.exclude_held_out={setting}"])).batches(1)
        hits = [(b.item_idx[:, 1:, None] == held_out[b.user_idx][:, None]).sum() for b in batches]
        assert (sum(hits) == 0) == is_free


def test_epochs_may_come_in_any_order(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["train.batch_size=50", "feed.window_interactions=150"])
    prepared = make_prepared_set(tmp_path / "data", num_partitions=4)
    expected = [samples_in_order(local_feed(prepared, recipe), epoch) for epoch in (1, 2, 3)]
    stream = local_feed(prepared, recipe)
    for epoch in (1, 3, 3, 2):  # each but the first discards a prefetched epoch
        assert samples_in_order(stream, epoch) == expected[epoch - 1]
    stream.close()


def samples_in_order(stream: EpochStream, epoch: int) -> list[list[int]]:
    return [row for batch in stream.batches(epoch) for row in batch.item_idx.tolist()]


class RecordingReader:
    """A window reader that records the epochs it was asked for and those whose reading was ended."""

    def __init__(self, reader: WindowReader) -> None:
        self._reader = reader
        self.asked: list[int] = []
        self.ended: list[int] = []

    def __call__(self, epoch: int, windows: Sequence[Window]) -> Iterator[WindowSamples]:
        self.asked.append(epoch)
        try:
            yield from self._reader(epoch, windows)
        finally:
            self.ended.append(epoch)


def test_the_next_epoch_is_read_ahead_and_close_ends_that(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["train.batch_size=50", "train.epochs=2", "feed.window_interactions=100"])
    prepared = make_prepared_set(tmp_path / "data", num_partitions=4)
    whole = local_feed(prepared, recipe)
    reader = RecordingReader(whole._read)
    stream = EpochStream(whole.plan, reader, recipe)
    assert sum(1 for _ in stream.batches(1)) == whole.plan.num_steps
    wait_until(lambda: reader.asked == [1, 2])
    assert reader.ended == [1]
    stream.close()
    assert reader.ended == [1, 2]
    assert sum(1 for _ in stream.batches(2)) == whole.plan.num_steps
    assert reader.asked == reader.ended == [1, 2, 2]  # after the last epoch nothing is read ahead


def test_an_epoch_that_is_left_early_ends_its_reading(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["train.batch_size=1", "train.epochs=1", "feed.window_interactions=1"])
    whole = local_feed(make_prepared_set(tmp_path / "data", num_partitions=20, num_users=60), recipe)
    reader = RecordingReader(whole._read)
    batches = EpochStream(whole.plan, reader, recipe).batches(1)
    next(batches)
    assert isinstance(batches, Generator)
    batches.close()
    assert reader.ended == [1]


def test_a_set_without_positives_has_no_batches(tmp_path: Path) -> None:
    plan = EpochPlan.make([0, 0], Recipe(), rank=0, world_size=2)
    reader = RecordingReader(local_feed(make_prepared_set(tmp_path / "data"), Recipe())._read)
    assert list(EpochStream(plan, reader, Recipe()).batches(1)) == []
    assert reader.asked == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_prefetched_keeps_order_and_errors() -> None:
    def source() -> Iterator[int]:
        yield from range(1, 6)
        raise ValueError("broken")

    ahead = Prefetched(source(), 2)
    assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    ahead.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_prefetched_stays_within_its_depth_and_closes_its_iterator(depth: int) -> None:
    made: list[int] = []
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            for number in range(100):
                made.append(number)
                yield number
        finally:
            closed.append(True)

    ahead = Prefetched(source(), depth)
    for taken in range(5):
        assert next(ahead) == taken
        wait_until(lambda taken=taken: len(made) == taken + 1 + depth)  # type: ignore[misc]
        time.sleep(0.02)
        assert len(made) == taken + 1 + depth
    ahead.close()
    assert closed == [True]
    assert list(ahead) == []
