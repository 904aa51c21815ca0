"""Epoch stream that draws on the device that trains, for sets whose positives fit into its memory.

Its batches equal those of `EpochStream`, bit for bit, where negatives are uniform: positives, histories and the items
that may not be drawn lie on the device; the shuffle and the negatives are computed there by the same counter-based
generator. Nothing but step numbers crosses from the host. Letters: B positives, N negatives, U users, n positives held.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ray_recsys.config import Recipe
from ray_recsys.core.counter_random import derive_key
from ray_recsys.core.models.contract import TensorBatch
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.device_random import derive_keys, permute, random_bits, scale_to, scale_to_each
from ray_recsys.core.sampling.epoch_plan import EpochPlan, Piece, Window
from ray_recsys.core.sampling.epoch_stream import empty_samples
from ray_recsys.core.sampling.excluded import ExcludedItems
from ray_recsys.core.sampling.negatives import ATTEMPT_STRIDE, NEGATIVES, NUM_ATTEMPTS
from ray_recsys.core.sampling.positives import ItemsBefore, Positives, Samples, needed_columns
from ray_recsys.errors import RecipeError

_CHUNK = 1 << 20  # positives drawn for at once where batches are smaller: the host waits for the device once in each


class DeviceStream:
    """All epochs of one worker.

    Args:
        prepared: The set; this worker's partitions are read at once.
        recipe: Feed, objective, batch size and seed.
        device: Where batches are made.
        rank: Of this worker.
        world_size: Number of workers.
        shares: That of `EpochPlan.make`.

    Raises:
        RecipeError: The worker's positives exceed `feed.window_interactions`.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        recipe: Recipe,
        device: torch.device,
        *,
        rank: int = 0,
        world_size: int = 1,
        shares: Sequence[int] | None = None,
    ) -> None:
        self.plan = plan = EpochPlan.of(prepared, recipe, rank=rank, world_size=world_size, shares=shares)
        if plan.sizes[rank] > recipe.feed.window_interactions:
            raise RecipeError(
                f"cluster.placement = 'device' holds all {plan.sizes[rank]:,} positives of a worker in the device's "
                f"memory, but feed.window_interactions allows {recipe.feed.window_interactions:,}",
                remedy="raise feed.window_interactions, train with more workers, or set cluster.placement = 'worker'",
            )
        self._seed, self._device = recipe.seed, device
        self._num_items, self._num_negatives = prepared.manifest.num_items, recipe.feed.num_negatives
        pieces = sorted(plan.pieces)
        self._first = dict(zip(pieces, np.cumsum([0, *(piece.size for piece in pieces)]).tolist(), strict=False))
        self._held = _Held(_read(prepared, pieces, recipe), device) if pieces else None
        self._nothing = _to_device(empty_samples(recipe), device)

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[TensorBatch]:
        """Yields the batches of an epoch from a step on: equally many on every worker, empty ones included.

        Args:
            epoch: Counted from 1.
            first_step: Counted from 0.
        """
        plan = self.plan
        order = self._order(epoch)
        steps_per_chunk = max(1, _CHUNK * plan.num_steps // max(1, plan.sizes[plan.rank]))
        for start in range(first_step, plan.num_steps, steps_per_chunk):
            stop = min(start + steps_per_chunk, plan.num_steps)
            chunk = self._samples(epoch, order[int(plan.cuts[start]) : int(plan.cuts[stop])])
            for step in range(start, stop):
                begin, end = (int(cut) for cut in plan.cuts[step : step + 2] - plan.cuts[start])
                yield _part(chunk, slice(begin, end), int(plan.global_batch_sizes[step]))

    def close(self) -> None:
        """Nothing is prefetched."""

    def _order(self, epoch: int) -> Tensor:
        """Returns the index of each positive in the epoch's order, int64[n]."""
        parts = [self._window_order(window) for window in self.plan.windows(epoch)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=self._device)

    def _window_order(self, window: Window) -> Tensor:
        indices = [
            torch.arange(self._first[piece], self._first[piece] + piece.size, device=self._device)
            for piece in window.pieces
        ]
        positions = torch.arange(window.end - window.begin, device=self._device)
        return torch.cat(indices)[permute(window.order, positions)]

    def _samples(self, epoch: int, indices: Tensor) -> TensorBatch:
        """Returns the samples of the positives at the given indices, with the epoch's negatives."""
        held = self._held
        if held is None:
            return self._nothing
        rows = held.rows[indices].long()
        user_idx, items = held.user_idx[rows], held.items[indices].unsqueeze(1)
        positions = indices - held.starts[rows]
        weight = torch.ones(len(indices), device=self._device) if held.weights is None else held.weights[indices]
        if held.excluded is not None:
            negatives = self._draw(epoch, user_idx, positions, held.excluded, rows)
            is_exhausted = (held.excluded.num_allowed[rows] == 0).unsqueeze(1)
            items = torch.cat([items, torch.where(is_exhausted, items, negatives)], dim=1)
        rating = None if held.ratings is None else held.ratings[indices]
        recent = None if held.before is None else held.before.latest(rows, positions)
        return TensorBatch(user_idx, items, weight, rating, 0, recent)

    def _draw(self, epoch: int, user_idx: Tensor, positions: Tensor, excluded: "_Excluded", rows: Tensor) -> Tensor:
        """Returns the negatives of B positives, int32[B, N]; see `NegativeSampler.draw`."""
        keys = derive_keys(derive_keys(derive_key(self._seed, NEGATIVES, epoch), user_idx), positions)
        counters = torch.arange(self._num_negatives, device=self._device)
        items = scale_to(random_bits(keys[:, None], counters), self._num_items)
        flat = items.view(-1)
        suspects = torch.arange(len(flat), device=self._device)
        for attempt in range(1, NUM_ATTEMPTS + 1):
            of_row = rows[suspects // self._num_negatives]
            suspects = suspects[excluded.contains(of_row, flat[suspects])]
            if not len(suspects):
                break
            positive = suspects // self._num_negatives
            bits = random_bits(keys[positive], suspects % self._num_negatives + attempt * ATTEMPT_STRIDE)
            if attempt < NUM_ATTEMPTS:
                flat[suspects] = scale_to(bits, self._num_items)
            else:
                flat[suspects] = excluded.nth_allowed(rows[positive], bits)
        return items.int()


class _Held:
    """A worker's positives on the device; see `Positives`."""

    def __init__(self, positives: Positives, device: torch.device) -> None:
        self.user_idx = torch.tensor(positives.user_idx.astype(np.int64), device=device)
        self.starts = torch.tensor(positives.starts, device=device)
        self.rows = torch.tensor(positives.rows, device=device)
        self.items = torch.tensor(positives.items, device=device)
        self.weights = None if positives.weights is None else torch.tensor(positives.weights, device=device)
        self.ratings = None if positives.ratings is None else torch.tensor(positives.ratings, device=device)
        self.excluded = None if positives.excluded is None else _Excluded(positives.excluded, device)
        self.before = None if positives.before is None else _Before(positives.before, device)


class _Excluded:
    """`ExcludedItems` as sorted keys `row << 32 | item`, which are bisected."""

    def __init__(self, excluded: ExcludedItems, device: torch.device) -> None:
        lengths = np.diff(excluded.offsets)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        num_before = np.arange(len(rows)) - excluded.offsets[rows]
        self._keys = torch.tensor(rows << 32 | excluded.items, device=device)
        self._allowed_below = torch.tensor(rows << 32 | (excluded.items - num_before), device=device)
        self._offsets = torch.tensor(excluded.offsets, device=device)
        self.num_allowed = torch.tensor(excluded.num_items - lengths, device=device)

    def contains(self, rows: Tensor, items: Tensor) -> Tensor:
        """Returns whether each item is excluded for its row, bool[B]."""
        keys = rows << 32 | items
        found = torch.searchsorted(self._keys, keys).clamp_(max=max(len(self._keys) - 1, 0))
        return self._keys[found] == keys if len(self._keys) else torch.zeros_like(keys, dtype=torch.bool)

    def nth_allowed(self, rows: Tensor, bits: Tensor) -> Tensor:
        """Returns an item allowed for its row for each 64 random bits, int64[B]."""
        ranks = scale_to_each(bits, self.num_allowed[rows])
        return ranks + torch.searchsorted(self._allowed_below, rows << 32 | ranks, right=True) - self._offsets[rows]


class _Before:
    """`ItemsBefore`."""

    def __init__(self, before: ItemsBefore, device: torch.device) -> None:
        self._offsets = torch.tensor(before.offsets, device=device)
        self._items = torch.tensor(before.items, device=device)
        self._ages = torch.arange(before.length, device=device)

    def latest(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Returns the items before a position of each row's history, latest first, int32[B, L]; -1: none."""
        starts = self._offsets[rows].unsqueeze(1)
        indices = starts + positions.unsqueeze(1) - 1 - self._ages
        return torch.where(indices >= starts, self._items[indices.clamp(min=0)], -1)


def _read(prepared: PreparedSet, pieces: Sequence[Piece], recipe: Recipe) -> Positives:
    columns, num_items = needed_columns(recipe), prepared.manifest.num_items
    tables = (prepared.read_columns(piece.partition, columns) for piece in pieces)
    return Positives.concatenate(
        [Positives.from_table(table, piece, num_items, recipe) for table, piece in zip(tables, pieces, strict=True)]
    )


def _to_device(samples: Samples, device: torch.device) -> TensorBatch:
    arrays = (samples.user_idx, samples.item_idx, samples.weight, samples.rating, samples.recent)
    users, items, weights, ratings, recent = (
        None if array is None else torch.tensor(array, device=device) for array in arrays
    )
    assert users is not None
    assert items is not None
    assert weights is not None
    return TensorBatch(users, items, weights, ratings, 0, recent)


def _part(chunk: TensorBatch, part: slice, global_batch_size: int) -> TensorBatch:
    return TensorBatch(
        chunk.user_idx[part],
        chunk.item_idx[part],
        chunk.weight[part],
        None if chunk.rating is None else chunk.rating[part],
        global_batch_size,
        None if chunk.recent is None else chunk.recent[part],
    )
