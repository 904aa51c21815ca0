"""Positives of any piece of a partition are those of the whole partition, cut."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import FeedRecipe, Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.histories import Interactions
from ray_recsys.core.sampling.epoch_plan import Piece
from ray_recsys.core.sampling.negatives import NegativeSampler
from ray_recsys.core.sampling.positives import Positives, Samples, needed_columns, sample_weights
from ray_recsys.core.sampling.window_readers import samples_from_table, samples_to_table
from ray_recsys.errors import ArtifactError

NUM_ITEMS = 9
EXPLICIT = ["train.objective=explicit", "input.rating_column=rating"]
RECIPES: tuple[list[str], ...] = (
    [],
    ["feed.recency_half_life=2"],
    ["feed.exclude_held_out=true", "feed.negatives=popularity"],
    ["feed.weight_by_repetition=true", "prepare.deduplicate=count"],
    EXPLICIT,
)


def table_of(histories: list[list[int]], held_out: list[list[int]] | None = None) -> pa.Table:
    """One row per user, whose ratings and repetitions are functions of the item."""

    def lists(values: list[Any], kind: Any) -> pa.Array:
        return pa.array(values, pa.list_(kind))

    held_out = held_out or [[] for _ in histories]
    return pa.table(
        {
            "user_idx": pa.array(range(100, 100 + len(histories)), pa.int64()),
            "item_idx": lists(histories, pa.int32()),
            "validation_item_idx": lists([items[:1] for items in held_out], pa.int32()),
            "test_item_idx": lists([items[1:] for items in held_out], pa.int32()),
            "rating": lists([[item / 2 for item in items] for items in histories], pa.float32()),
            "repetition": lists([[item % 3 + 1 for item in items] for items in histories], pa.int32()),
        }
    )


def samples_of(table: pa.Table, pieces: list[Piece], recipe: Recipe) -> Samples:
    columns = table.select(needed_columns(recipe))
    positives = Positives.concatenate([Positives.from_table(columns, piece, NUM_ITEMS, recipe) for piece in pieces])
    sampler = NegativeSampler.from_recipe(recipe, np.arange(NUM_ITEMS))
    return positives.samples(np.arange(positives.size), 3, sampler)


def assert_equal(found: Samples, expected: Samples) -> None:
    for name in ("user_idx", "item_idx", "weight", "rating"):
        value, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert value is None
        else:
            assert value.dtype == other.dtype
            np.testing.assert_array_equal(value, other)


@given(
    users=st.lists(
        st.permutations(range(NUM_ITEMS)).flatmap(
            lambda items: st.integers(0, NUM_ITEMS).map(lambda n: (list(items[:n]), list(items[n : n + 2])))
        ),
        min_size=1,
        max_size=7,
    ),
    overrides=st.sampled_from(RECIPES),
    data=st.data(),
)
def test_pieces_of_a_partition_make_its_samples(
    users: list[tuple[list[int], list[int]]], overrides: list[str], data: st.DataObject
) -> None:
    recipe = load_recipe(None, [*overrides])
    histories = [history for history, _ in users]
    table = table_of(histories, [held_out for _, held_out in users])
    total = sum(map(len, histories))
    if not total:
        return
    cuts = sorted({0, total, *data.draw(st.lists(st.integers(0, total), max_size=4))})
    pieces = [Piece(0, begin, end) for begin, end in pairwise(cuts)]
    whole = samples_of(table, [Piece(0, 0, total)], recipe)
    assert_equal(samples_of(table, pieces, recipe), whole)
    assert_equal(Samples.concatenate([samples_of(table, [piece], recipe) for piece in pieces]), whole)
    pairs = list(zip(whole.user_idx.tolist(), whole.item_idx[:, 0].tolist(), strict=True))
    assert pairs == [(100 + user, item) for user, items in enumerate(histories) for item in items]
    for (user, _), negatives, weight in zip(pairs, whole.item_idx[:, 1:], whole.weight, strict=True):
        history, held_out = users[user - 100]
        taken = {*history, *(held_out if recipe.feed.exclude_held_out else [])}
        if len(taken) < NUM_ITEMS:
            assert not set(negatives.tolist()) & taken
        elif whole.rating is None:
            assert weight == 0
    if whole.rating is not None:
        np.testing.assert_array_equal(whole.rating, whole.item_idx[:, 0] / 2)


def test_a_user_who_has_everything_weighs_nothing() -> None:
    samples = samples_of_three(Piece(0, 1, 4), [[2, 0, 1], [1]])
    assert samples.weight.tolist() == [0, 0, 1]
    assert samples.item_idx[:2].tolist() == [[0] * 5, [1] * 5]
    assert set(samples.item_idx[2, 1:].tolist()) <= {0, 2}


def samples_of_three(piece: Piece, histories: list[list[int]]) -> Samples:
    """Samples from a catalogue of 3 items."""
    positives = Positives.from_table(table_of(histories), piece, 3, Recipe())
    return positives.samples(np.arange(positives.size), 1, NegativeSampler(3, 4, 0))


def test_what_the_set_was_prepared_without_is_named() -> None:
    table = table_of([[2, 0], [1]])
    for overrides, column, remedy in ((EXPLICIT, "rating", "input.rating_column"), (RECIPES[3], "repetition", "count")):
        with pytest.raises(ArtifactError, match=f"has no {column}s") as refused:
            Positives.from_table(table.drop_columns(column), Piece(0, 0, 3), NUM_ITEMS, load_recipe(None, [*overrides]))
        assert remedy in refused.value.remedy


@pytest.mark.parametrize("overrides", RECIPES)
def test_only_the_needed_columns_are_read(overrides: list[str]) -> None:
    recipe = load_recipe(None, [*overrides])
    table, needed = table_of([[2, 0], [1, 3, 5]], [[4, 5], [6, 7]]), needed_columns(recipe)
    samples_of(table, [Piece(0, 0, 5)], recipe)
    for column in needed:
        with pytest.raises((KeyError, ArtifactError)):
            Positives.from_table(table.select([c for c in needed if c != column]), Piece(0, 0, 5), NUM_ITEMS, recipe)


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


@pytest.mark.parametrize("overrides", [[], EXPLICIT])
@pytest.mark.parametrize("size", [0, 1, 6])
def test_samples_survive_a_table_even_cut_and_in_chunks(overrides: list[str], size: int) -> None:
    samples = samples_of(table_of([[2, 0, 4], [1, 3, 5]]), [Piece(0, 0, 6)], load_recipe(None, [*overrides]))
    table = samples_to_table(samples)
    start = 6 - size
    assert_equal(samples_from_table(table.slice(start)), samples.take(slice(start, None)))
    chunked = pa.concat_tables([table.slice(start, 2), table.slice(start + 2)])
    assert_equal(samples_from_table(chunked), samples.take(slice(start, None)))


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_recent_items_are_those_before_the_positive_in_any_piece(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    histories = [rng.integers(0, 50, rng.integers(0, 9)).tolist() for _ in range(6)]
    table = pa.table({"user_idx": np.arange(6), "item_idx": pa.array(histories, pa.list_(pa.int32()))})
    total = sum(map(len, histories))
    cuts = np.unique([0, *rng.integers(0, total + 1, 3), total])
    recipe = load_recipe(None, [f"model.recent_items={length}"])
    sampler = NegativeSampler(50, 4, 1)
    parts = [Positives.from_table(table, Piece(0, int(a), int(b)), 50, recipe) for a, b in pairwise(cuts)]
    if not parts:
        return
    samples = Positives.concatenate(parts).samples(np.arange(total), 1, sampler)
    expected = [
        (items[position - length if position > length else 0 : position][::-1] + [-1] * length)[:length]
        for items in histories
        for position in range(len(items))
    ]
    assert samples.recent is not None
    assert samples.recent.tolist() == expected
    assert samples.take(slice(1, 3)).recent.tolist() == expected[1:3]  # type: ignore[union-attr]
    again = samples_from_table(samples_to_table(samples))
    assert again.recent is not None
    assert again.recent.tolist() == expected
