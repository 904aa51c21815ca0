"""Every positive belongs to one worker, one window and one step, whatever the layout."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.sampling import epoch_plan
from ray_recsys.core.sampling.epoch_plan import EpochPlan


def plans_of(num_training: list[int], recipe: Recipe, world_size: int) -> list[EpochPlan]:
    return [EpochPlan.make(num_training, recipe, rank=rank, world_size=world_size) for rank in range(world_size)]


def recipe_of(batch_size: int = 4096, window: int = 10**6, seed: int = 0) -> Recipe:
    return load_recipe(None, [f"train.batch_size={batch_size}", f"feed.window_interactions={window}", f"seed={seed}"])


@given(
    num_training=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    world_size=st.integers(1, 11),
    batch_size=st.integers(1, 60),
    window=st.integers(1, 100),
    first_window=st.sampled_from([4, 1 << 20]),
    epoch=st.integers(1, 3),
)
def test_pieces_windows_and_steps_cover_every_positive_once(
    *, num_training: list[int], world_size: int, batch_size: int, window: int, first_window: int, epoch: int
) -> None:
    plans = plans_of(num_training, recipe_of(batch_size, window), world_size)
    covered = [(p.partition, i) for plan in plans for p in plan.pieces for i in range(p.begin, p.end)]
    assert covered == [(p, i) for p, size in enumerate(num_training) for i in range(size)]
    sizes = [sum(piece.size for piece in plan.pieces) for plan in plans]
    assert max(sizes) - min(sizes) <= 1
    num_steps = -(-sum(num_training) // batch_size)
    for plan, size in zip(plans, sizes, strict=True):
        assert (plan.num_steps, list(plan.sizes)) == (num_steps, sizes)
        assert (plan.cuts[0], plan.cuts[-1]) == (0, size if num_steps else 0)
        assert np.ptp(np.diff(plan.cuts)) <= 1 if num_steps else len(plan.cuts) == 1
        np.testing.assert_array_equal(plan.global_batch_sizes, sum(np.diff(other.cuts) for other in plans))
        assert (plan.global_batch_sizes <= batch_size + world_size).all()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(epoch_plan, "_FIRST_WINDOW", first_window)
            windows = plan.windows(epoch)
        assert sorted(piece for w in windows for piece in w.pieces) == list(plan.pieces)
        assert [w.begin for w in windows] == [0, *(w.end for w in windows)][: len(windows)]
        for number, w in enumerate(windows):
            assert w.end - w.begin == sum(piece.size for piece in w.pieces)
            assert len(w.pieces) == 1 or w.end - w.begin <= min(first_window << number, window)
            assert sorted(w.order(np.arange(w.end - w.begin)).tolist()) == list(range(w.end - w.begin))
        assert plan.fits_in_a_window or len(windows) > 1


def test_windows_grow_from_a_small_one_and_differ_between_epochs_and_seeds() -> None:
    plan, other = (
        EpochPlan.make([1_000_000] * 12, recipe_of(window=4_000_000, seed=seed), rank=0, world_size=1)
        for seed in (0, 1)
    )
    first, second = (plan.windows(epoch) for epoch in (1, 2))
    assert [len(window.pieces) for window in first] == [1, 2, 4, 4, 1]
    assert [window.pieces for window in first] != [window.pieces for window in second]
    assert [window.pieces for window in first] != [window.pieces for window in other.windows(1)]
    assert first == plan.windows(1)


def test_workers_that_share_a_partition_shuffle_their_parts_differently() -> None:
    mine, others = (plan.windows(1)[0] for plan in plans_of([2000], recipe_of(), 2))
    assert (mine.pieces[0].partition, others.pieces[0].partition) == (0, 0)
    assert np.mean(mine.order(np.arange(1000)) == others.order(np.arange(1000))) < 0.02
