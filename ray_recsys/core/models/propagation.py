"""Embeddings propagated over the graph of users and items that training interactions make.

The graph is the bipartite adjacency R, normalised: an interaction of user u and item i weighs 1 / sqrt(d_u d_i), with d
the numbers of their interactions. The symmetric operator A = [[0, R], [R^T, 0]] acts on the rows of users and items,
layer k of E is A^k E, and the propagated embeddings are the mean of the layers 0..K. The gradient of a symmetric linear
operator is the operator itself, so the backward pass is the same propagation of the gradients.

Columns of E propagate independently: they go in blocks, which bounds the working memory, and in a process group each
worker propagates its share of the columns only. Sums over rows are `embedding_bag`'s with 32-bit indices, on one core
2.8 times as fast as scipy's sparse product and 1.3 times as fast as torch's (810,000 interactions, 64 columns).

Shapes: U users, I items, n interactions, D columns, K layers.

Source: He et al.: LightGCN, SIGIR 2020, equations 3, 4 and 8.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from ray_recsys.core.models.contract import SparseFactors
from ray_recsys.core.models.sparse_rows import to_csr

MAX_BLOCK_VALUES = 1 << 26
"""Values of a layer that are propagated at once: 256 MB of float32, of which three are held."""


@dataclass(frozen=True, slots=True)
class Adjacency:
    """Neighbours of each row: row r has the entries `begin[r]:begin[r + 1]` of the others, the last row the rest."""

    begin: Tensor
    """int32[rows]."""
    idx: Tensor
    """int32[n]."""
    weights: Tensor
    """float32[n]."""

    def sums(self, vectors: Tensor) -> Tensor:
        """Returns each row's weighted sum of its neighbours' vectors, [rows, D]."""
        return functional.embedding_bag(
            self.idx, vectors, self.begin, per_sample_weights=self.weights, mode="sum", include_last_offset=False
        )

    def to(self, device: torch.device) -> Self:
        """Returns the same on a device."""
        return replace(self, begin=self.begin.to(device), idx=self.idx.to(device), weights=self.weights.to(device))


@dataclass(frozen=True, slots=True)
class Graph:
    """The normalised adjacency in both directions; 16 bytes an interaction."""

    of_users: Adjacency
    of_items: Adjacency
    item_degrees: Tensor
    """float32[I], at least 1."""

    @classmethod
    def of(cls, histories: SparseFactors, num_items: int) -> Self:
        """Returns the graph of the users' items; their weights are not used."""
        assert histories.offsets[-1] < 2**31, "the graph has 32-bit offsets"
        lengths = np.diff(histories.offsets)
        degrees = np.maximum(np.bincount(histories.idx, minlength=num_items), 1).astype(np.float32)
        user_scale = 1 / np.sqrt(np.maximum(lengths, 1).astype(np.float32))
        weights = np.repeat(user_scale, lengths) / np.sqrt(degrees)[histories.idx]
        matrix = to_csr(SparseFactors(histories.offsets, histories.idx, weights.astype(np.float32)), num_items)
        return cls(_adjacency(matrix), _adjacency(matrix.T.tocsr()), torch.from_numpy(degrees))

    def to(self, device: torch.device) -> Self:
        """Returns the graph on a device; itself if it is there already."""
        if self.item_degrees.device == device:
            return self
        return replace(
            self,
            of_users=self.of_users.to(device),
            of_items=self.of_items.to(device),
            item_degrees=self.item_degrees.to(device),
        )

    @torch.no_grad()
    def mean_of_layers(self, users: Tensor, items: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
        """Returns the mean of the layers 0..K of users [U, D] and items [I, D]."""
        mean_users, mean_items = users.clone(), items.clone()
        for block in _blocks(len(users) + len(items), 0, users.shape[1]):
            self._add_layers(mean_users, mean_items, block, num_layers)
        return mean_users.div_(num_layers + 1), mean_items.div_(num_layers + 1)

    def _add_layers(self, users: Tensor, items: Tensor, block: slice, num_layers: int) -> None:
        """Adds the layers 1..K of some columns to layer 0, in place."""
        of_users, of_items = users[:, block].contiguous(), items[:, block].contiguous()
        for _ in range(num_layers):
            of_users, of_items = self.of_users.sums(of_items), self.of_items.sums(of_users)
            users[:, block] += of_users
            items[:, block] += of_items


def propagate(users: Tensor, items: Tensor, graph: Graph, num_layers: int) -> tuple[Tensor, Tensor]:
    """Returns the propagated embeddings of users [U, D] and items [I, D], with gradients.

    In a process group every worker must call it, with the same embeddings; a worker's gradients are then complete for
    its share of the columns and zero for the others, so that the sum over workers is the gradient of all their losses.
    """
    propagated: tuple[Tensor, Tensor] = _Propagate.apply(users, items, graph, num_layers)  # type: ignore[no-untyped-call]
    return propagated


class _Propagate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, graph: Graph, num_layers: int) -> tuple[Tensor, Tensor]:
        ctx.graph, ctx.num_layers, ctx.num_users = graph, num_layers, len(users)
        if not _is_group():
            return graph.mean_of_layers(users, items, num_layers)
        rows = torch.cat([users, items])
        own = _own_columns(graph, rows, len(users), num_layers)
        dist.all_reduce(own)  # every column is zero on all workers but one
        return own[: len(users)], own[len(users) :]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        users, items = gradients
        if not _is_group():
            return *ctx.graph.mean_of_layers(users, items, ctx.num_layers), None, None
        rows = torch.cat([users, items])
        dist.all_reduce(rows)  # the gradient of all workers' losses
        own = _own_columns(ctx.graph, rows, ctx.num_users, ctx.num_layers)
        return own[: ctx.num_users], own[ctx.num_users :], None, None


def _own_columns(graph: Graph, rows: Tensor, num_users: int, num_layers: int) -> Tensor:
    """Returns the mean of the layers in this worker's share of the columns; the others are zero."""
    rank, size, width = dist.get_rank(), dist.get_world_size(), rows.shape[1]
    begin, end = width * rank // size, width * (rank + 1) // size
    own = torch.zeros_like(rows)
    for block in _blocks(len(rows), begin, end):
        part = rows[:, block]
        users, items = graph.mean_of_layers(part[:num_users], part[num_users:], num_layers)
        own[:num_users, block], own[num_users:, block] = users, items
    return own


def _blocks(num_rows: int, begin: int, end: int) -> Iterator[slice]:
    """Yields the columns `begin..end` in blocks of bounded size."""
    width = max(1, MAX_BLOCK_VALUES // max(num_rows, 1))
    for start in range(begin, end, width):
        yield slice(start, min(start + width, end))


def _adjacency(matrix: Any) -> Adjacency:
    return Adjacency(
        torch.from_numpy(matrix.indptr[:-1].astype(np.int32)),
        torch.from_numpy(matrix.indices.astype(np.int32)),
        torch.from_numpy(matrix.data.astype(np.float32)),
    )


def _is_group() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
