from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ray_recsys.config import FeedRecipe, Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.histories import Interactions
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece
from ray_recsys.core.sampling.epoch_stream import Batch, Prefetched
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, sample_weights
from ray_recsys.core.sampling.window_readers import HistoryReader, local_feed
from ray_recsys.errors import ArtifactError
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


def test_users_are_shuffled_anew_each_epoch(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=300)
    first, second = (
        np.concatenate([b.user_idx for b in local_feed(prepared, Recipe()).batches(epoch)]) for epoch in (1, 2)
    )
    assert np.mean(first == second) < 0.05
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.1


def test_windows_grow_from_a_small_one_and_are_others_each_epoch() -> None:
    recipe = load_recipe(None, ["feed.window_interactions=4000000"])
    plan = EpochPlan.make([1_000_000] * 12, recipe, rank=0, world_size=1)
    first, second = (plan.windows(epoch) for epoch in (1, 2))
    assert [len(window.pieces) for window in first] == [1, 2, 4, 4, 1]
    assert sorted(piece for window in first for piece in window.pieces) == list(plan.pieces)
    assert [window.pieces for window in first] != [window.pieces for window in second]


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


def test_a_user_who_has_everything_weighs_nothing(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data")
    table = pa.table({"user_idx": [0, 1], "item_idx": pa.array([[2, 0, 1], [1]], pa.list_(pa.int32()))})
    positives = Positives.from_table(table, Piece(0, 1, 4), 3, Recipe())
    sampler = NegativeSampler(3, 4, 0)
    samples = positives.samples(np.arange(3), 1, sampler)
    assert samples.weight.tolist() == [0, 0, 1]
    assert samples.item_idx[:2].tolist() == [[0] * 5, [1] * 5]
    assert set(samples.item_idx[2, 1:].tolist()) <= {0, 2}
    assert prepared.manifest.num_items == 40


def test_held_out_items_are_excluded_on_request(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_items=16, num_partitions=1)
    histories = prepared.read_partition(0)
    held_out = np.stack([histories.validation.item_idx, histories.test.item_idx], axis=1)
    for setting, is_free in (("true", True), ("false", False)):
        batches = local_feed(prepared, load_recipe(None, [f"feed.exclude_held_out={setting}"])).batches(1)
        hits = [(b.item_idx[:, 1:, None] == held_out[b.user_idx][:, None]).sum() for b in batches]
        assert (sum(hits) == 0) == is_free


def test_explicit_ratings_have_no_negatives() -> None:
    lists = {"item_idx": pa.array([[2, 0], [1]], pa.list_(pa.int32()))}
    table = pa.table({"user_idx": [4, 5], **lists, "rating": pa.array([[5.0, 1.0], [3.5]], pa.list_(pa.float32()))})
    recipe = load_recipe(None, ["train.objective=explicit", "input.rating_column=rating"])
    samples = Positives.from_table(table, Piece(0, 0, 3), 3, recipe).samples(np.arange(3), 1, NegativeSampler(3, 4, 0))
    assert samples.item_idx.tolist() == [[2], [0], [1]]
    assert samples.rating is not None
    assert samples.rating.tolist() == [5.0, 1.0, 3.5]
    with pytest.raises(ArtifactError, match="no ratings"):
        Positives.from_table(table.drop_columns("rating"), Piece(0, 0, 3), 3, recipe)


def test_weights_by_hand() -> None:
    items, repetition = np.zeros(4, np.int32), np.array([1, 3, 1, 2], np.int32)
    training = Interactions(np.array([0, 3, 3, 4]), items, repetition=repetition)
    assert sample_weights(training, FeedRecipe()) is None
    recency = sample_weights(training, FeedRecipe(recency_half_life=1))
    assert recency is not None
    np.testing.assert_allclose(recency, np.array([0.25, 0.5, 1, 1.75 / 3]) * 3 / 1.75, rtol=1e-6)
    both = np.array([0.25, 0.5 * (1 + np.log(3)), 1])
    found = sample_weights(training, FeedRecipe(recency_half_life=1, weight_by_repetition=True))
    assert found is not None
    np.testing.assert_allclose(found, [*(both * 3 / both.sum()), 1], rtol=1e-6)
    with pytest.raises(ArtifactError, match="deduplicate = 'count'"):
        sample_weights(Interactions(training.offsets, items), FeedRecipe(weight_by_repetition=True))


def test_prefetched_keeps_order_and_errors() -> None:
    def source() -> Iterator[int]:
        yield from range(1, 6)
        raise ValueError("broken")

    ahead = Prefetched(source(), 2)
    assert [next(ahead) for _ in range(5)] == [1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    ahead.close()
