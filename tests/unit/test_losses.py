"""Losses, L2 and gathered rows against formulas by hand and Torch's own backward pass, bit for bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from ray_recsys.config import TrainRecipe
from ray_recsys.core.models.contract import TensorBatch
from ray_recsys.core.models.gather import gather, order_rows, weighted_sums
from ray_recsys.core.models.losses import (
    binary_cross_entropy,
    item_square_norms,
    pair_loss,
    squared_error,
    user_square_norms,
)

INDICES = st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), max_size=8)


def batch_of(user_idx: Tensor, item_idx: Tensor, *, weight: Tensor, rating: Tensor | None = None) -> TensorBatch:
    return TensorBatch(user_idx=user_idx, item_idx=item_idx, weight=weight, rating=rating, global_batch_size=4)


def batch(num_pairs: int = 2, num_items: int = 3, rating: Tensor | None = None) -> TensorBatch:
    users = torch.arange(num_pairs)
    items = torch.arange(num_pairs * num_items).reshape(num_pairs, num_items) % 5
    return batch_of(users, items, weight=torch.tensor([1.0, 2.0])[:num_pairs], rating=rating)


def table_of(num_rows: int = 7, width: int = 4) -> Tensor:
    return torch.randn(num_rows, width, generator=torch.Generator().manual_seed(3)).requires_grad_()


def gradient(value: Tensor, table: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, table)
    return found


def test_cross_entropy_weighs_the_positive_alone() -> None:
    logits = torch.tensor([[0.0, 0.0, 1.0], [2.0, -1.0, 0.0]])
    positive = 1.0 * math.log(2) + 2.0 * math.log1p(math.exp(-2))
    negatives = math.log(2) + math.log1p(math.exp(1)) + math.log1p(math.exp(-1)) + math.log(2)
    assert binary_cross_entropy(logits, batch()).item() == pytest.approx(positive + negatives)


def test_cross_entropy_of_a_large_logit_is_finite() -> None:
    logits = torch.tensor([[-200.0, 200.0, 0.0]])
    assert binary_cross_entropy(logits, batch(1)).item() == pytest.approx(400 + math.log(2))


def test_squared_error_is_weighted() -> None:
    rated = batch(2, 1, rating=torch.tensor([3.0, 5.0]))
    assert squared_error(torch.tensor([[4.0], [2.0]]), rated).item() == pytest.approx(1 * 1 + 2 * 9)


def test_the_objective_chooses_the_loss() -> None:
    assert pair_loss(TrainRecipe(objective="explicit")) is squared_error
    assert pair_loss(TrainRecipe()) is binary_cross_entropy


def test_a_worker_without_positives_has_no_loss() -> None:
    empty = batch_of(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, dtype=torch.int64), weight=torch.zeros(0))
    assert binary_cross_entropy(torch.zeros(0, 3), empty).item() == 0
    assert user_square_norms(table_of(), empty).item() == item_square_norms(table_of(), empty).item() == 0


@pytest.mark.parametrize("num_rows", [7, 1000])  # a small table is read whole, of a large one only the rows
def test_norms_are_those_of_each_pairs_rows(num_rows: int) -> None:
    table, chosen = table_of(num_rows), batch()
    users = sum(table[user].square().sum() * 3 for user in chosen.user_idx)
    items = sum(table[item].square().sum() for item in chosen.item_idx.reshape(-1))
    for found, expected in ((user_square_norms(table, chosen), users), (item_square_norms(table, chosen), items)):
        assert isinstance(expected, Tensor)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient(found, table), gradient(expected, table))


@given(indices=INDICES)
def test_gathered_rows_have_the_bits_of_torchs_own_gradient(indices: list[list[int]]) -> None:
    table, rows = table_of(), torch.tensor(indices, dtype=torch.int64).reshape(-1, 3)
    weights = torch.randn(*rows.shape, 4, generator=torch.Generator().manual_seed(5))
    ours = gather(table, rows, order_rows(rows, len(table)))
    theirs = functional.embedding(rows, table)
    assert torch.equal(ours, theirs)
    assert torch.equal(gradient((ours * weights).sum(), table), gradient((theirs * weights).sum(), table))


def test_tables_of_more_rows_than_16_bits_count_are_gathered_too() -> None:
    table, rows = table_of((1 << 16) + 2, 2), torch.tensor([[1 << 16, 0], [(1 << 16) + 1, 1 << 16]])
    found = gradient(gather(table, rows, order_rows(rows, len(table))).sum(), table)
    assert found.sum(dim=1).nonzero().reshape(-1).tolist() == [0, 1 << 16, (1 << 16) + 1]
    assert found[1 << 16].tolist() == [2, 2]


def test_a_table_without_columns_is_gathered() -> None:
    rows = torch.tensor([[0, 3]])
    assert gather(torch.zeros(7, 0), rows, order_rows(rows, 7)).shape == (1, 2, 0)


@given(indices=INDICES)
def test_weighted_sums_are_those_of_a_product(indices: list[list[int]]) -> None:
    table, rows = table_of(), torch.tensor(indices, dtype=torch.int64).reshape(-1, 3)
    weights = torch.randn(len(rows), 2, 3, generator=torch.Generator().manual_seed(7))
    ours, theirs = weighted_sums(table, rows, weights), torch.matmul(weights, functional.embedding(rows, table))
    torch.testing.assert_close(ours, theirs)
    scale = torch.linspace(-1, 1, ours.numel()).reshape(ours.shape)  # sums of up to 24 terms, in another order
    found, expected = (gradient((sums * scale).sum(), table) for sums in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
