"""Rows of embedding tables for many indices at once, with a fast backward pass on the CPU.

Torch's own backward adds gradient rows one by one; here indices are sorted once and each table row's gradients
are summed as a segment. The order of additions is the same, so are the bits. Shapes: R rows of a table, W its width,
B positives, L indices of each, K weightings.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_MAX_UINT16 = 1 << 16  # numpy sorts 16-bit integers by radix


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Where each table row occurs among n indices: row r at `order[begin[r]:begin[r + 1]]`, in order of occurrence."""

    order: Tensor
    """int64[n]."""
    begin: Tensor
    """int64[R]."""


def order_rows(rows: Tensor, num_rows: int) -> RowOrder | None:
    """Returns where each of R rows occurs among the indices; None on devices where torch's own backward is used."""
    if rows.device.type != "cpu":
        return None
    flat = rows.reshape(-1).numpy()
    if num_rows <= _MAX_UINT16:
        flat = flat.astype(np.uint16)
    begin = np.zeros(num_rows, np.int64)
    np.cumsum(np.bincount(flat, minlength=num_rows)[:-1], out=begin[1:])
    return RowOrder(torch.from_numpy(np.argsort(flat, kind="stable")), torch.from_numpy(begin))


def gather(table: Tensor, rows: Tensor, order: RowOrder | None) -> Tensor:
    """Returns table[rows]: [R, W], integers [...] → [..., W]. `order` is `order_rows(rows, R)`."""
    if order is None or not table.shape[1]:  # embedding_bag of width 0 fails on several threads
        return functional.embedding(rows, table)
    gathered: Tensor = _Gather.apply(table, rows, order.order, order.begin)  # type: ignore[no-untyped-call]
    return gathered


def weighted_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Returns weighted sums of table rows: [R, W], integers [B, L], weights float32[B, K, L] → [B, K, W].

    The weights get no gradient.
    """
    if rows.device.type != "cpu":
        return torch.matmul(weights, functional.embedding(rows, table))
    sums: Tensor = _WeightedSums.apply(table, rows, weights)  # type: ignore[no-untyped-call]
    return sums


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, order: Tensor, begin: Tensor) -> Tensor:
        ctx.save_for_backward(order, begin)
        return functional.embedding(rows, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        order, begin = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        return functional.embedding_bag(order, gradient, begin, mode="sum"), None, None, None


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.num_rows = len(table)
        sums = [
            functional.embedding_bag(rows, table, per_sample_weights=weights[:, k].contiguous(), mode="sum")
            for k in range(weights.shape[1])
        ]
        return torch.stack(sums, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, weights = ctx.saved_tensors
        found = order_rows(rows, ctx.num_rows)
        assert found is not None
        positive = torch.div(found.order, rows.shape[1], rounding_mode="floor")
        total = gradients[0].new_zeros(ctx.num_rows, gradients[0].shape[-1])
        for k in range(weights.shape[1]):
            weight = weights[:, k].reshape(-1)[found.order]
            part = gradients[0][:, k].contiguous()
            total += functional.embedding_bag(positive, part, found.begin, per_sample_weights=weight, mode="sum")
        return total, None, None
