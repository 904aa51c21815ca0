"""The training matrix holds the training interactions, and weighs them as the recipe says."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import HistoryWeightsRecipe
from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.sparse_rows import concatenate, to_csr, weighted_rows
from ray_recsys.core.models.training_matrix import one_history, read_training_matrix, weigh_by_recency
from ray_recsys.core.prepared import write_partition
from ray_recsys.errors import ArtifactError
from tests.factories import make_prepared_set


def rows_of(*rows: list[int]) -> SparseFactors:
    """Returns rows of items that weigh 1."""
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    idx = np.array([item for row in rows for item in row], np.int32)
    return SparseFactors(offsets, idx, np.ones(len(idx), np.float32))


def test_every_training_interaction_is_there_in_order_and_nothing_else(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=17, num_partitions=5)
    matrix = read_training_matrix(prepared)
    partitions = [prepared.read_partition(p).training for p in range(5)]
    assert np.array_equal(matrix.idx, np.concatenate([p.item_idx for p in partitions]))
    assert np.array_equal(np.diff(matrix.offsets), np.concatenate([p.lengths for p in partitions]))
    assert np.array_equal(np.bincount(matrix.idx, minlength=40), prepared.item_counts())
    assert (matrix.weights == 1).all()


def test_a_refit_ends_each_history_with_what_was_held_out(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=9, num_partitions=2)
    matrix = read_training_matrix(prepared.with_held_out())
    held_out = [prepared.read_partition(partition) for partition in range(2)]
    assert np.array_equal(matrix.idx[matrix.offsets[1:] - 1], np.concatenate([h.test.item_idx for h in held_out]))
    assert np.array_equal(matrix.idx[matrix.offsets[1:] - 2], np.concatenate([h.validation.item_idx for h in held_out]))
    assert len(matrix.idx) == len(read_training_matrix(prepared).idx) + 18


def test_weight_by_repetition_is_1_plus_its_logarithm(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set", num_users=4, num_partitions=1)
    histories = prepared.read_partition(0)
    repetition = np.arange(1, len(histories.training.item_idx) + 1, dtype=np.int32)
    counted = dataclasses.replace(histories, training=dataclasses.replace(histories.training, repetition=repetition))
    write_partition(prepared.path, 0, counted, prepared.read_user_ids(0).combine_chunks())
    assert np.allclose(read_training_matrix(prepared, weight_by_repetition=True).weights, 1 + np.log(repetition))
    assert (read_training_matrix(prepared).weights == 1).all()


def test_weight_by_repetition_needs_counts(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    with pytest.raises(ArtifactError, match=r"no repetitions; prepare it with prepare\.deduplicate = 'count'"):
        read_training_matrix(prepared, weight_by_repetition=True)


def test_recency_weights_halve_towards_the_floor() -> None:
    weighed = weigh_by_recency(
        rows_of([5, 6, 7], [], [8]), HistoryWeightsRecipe(recency_half_life=1, recency_floor=0.2)
    )
    assert np.allclose(weighed.weights, [0.2 + 0.8 / 4, 0.2 + 0.8 / 2, 1, 1])
    assert weighed.offsets.tolist() == [0, 3, 3, 4]


def test_entries_that_weigh_nothing_are_left_out() -> None:
    long = rows_of(list(range(100)), [1, 2])
    weighed = weigh_by_recency(long, HistoryWeightsRecipe(recency_half_life=1))
    assert weighed.idx.tolist() == [*range(59, 100), 1, 2]
    assert weighed.offsets.tolist() == [0, 41, 43]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_of_a_repeated_item_the_last_is_kept(history: list[int]) -> None:
    expected = [item for at, item in enumerate(history) if item not in history[at + 1 :]]
    assert one_history(np.array(history, np.int32)).idx.tolist() == expected


@given(st.lists(st.lists(st.integers(0, 6), max_size=5, unique=True), min_size=1, max_size=6), st.data())
def test_rows_are_taken_and_joined(rows: list[list[int]], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8))
    taken = rows_of(*rows).take(np.array(chosen, np.int64))
    expected = rows_of(*(rows[row] for row in chosen))
    assert np.array_equal(taken.offsets, expected.offsets)
    assert np.array_equal(taken.idx, expected.idx)
    joined = concatenate([rows_of(*rows), rows_of(*rows)])
    assert np.array_equal(joined.offsets, rows_of(*rows, *rows).offsets)


def test_weighted_rows_of_sparse_and_dense_matrices_agree() -> None:
    users = SparseFactors(np.array([0, 2, 2]), np.array([2, 0], np.int32), np.array([0.5, 2], np.float32))
    matrix = rows_of([0, 1], [2], [1, 3])
    expected = np.array([[2, 2.5, 0, 0.5], [0, 0, 0, 0]], np.float32)
    columns = np.array([[3, 1], [0, 0]])
    for rows in (to_csr(matrix, 4), to_csr(matrix, 4).toarray()):
        assert np.array_equal(weighted_rows(users, rows, None), expected)
        assert np.array_equal(weighted_rows(users, rows, columns), np.take_along_axis(expected, columns, axis=1))
