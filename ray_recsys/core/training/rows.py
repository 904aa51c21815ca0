"""Distinct rows of a batch, and the exchange of rows that workers have touched.

Shapes: R rows of a table, n distinct rows of a worker, W columns.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ray_recsys.core.arrays import Int32s, Int64s, Integers
from ray_recsys.core.training.data_parallel import is_group


class RowFinder:
    """Finds the distinct rows among indices, in time that does not depend on R.

    Args:
        num_rows: R; 4 bytes of memory each.
    """

    def __init__(self, num_rows: int) -> None:
        self._slots: Int32s = np.empty(num_rows, np.int32)

    def __call__(self, idx: Integers) -> tuple[Int64s, Int64s]:
        """Returns the distinct indices, int64[n], in order of their last occurrence, and where each index is in them.

        Args:
            idx: Integers in 0..R-1, of any shape; the second result has the same shape.
        """
        flat = idx.reshape(-1)
        numbers = np.arange(len(flat), dtype=np.int32)
        self._slots[flat] = numbers  # of equal indices the last one stays; nothing has to be cleared
        is_last = self._slots[flat] == numbers
        distinct = flat[is_last].astype(np.int64)
        self._slots[distinct] = numbers[: len(distinct)]
        return distinct, self._slots[flat].astype(np.int64).reshape(idx.shape)


class TouchedRows:
    """The rows that a step touches, on all workers.

    Neither NCCL nor gloo reduces sparse tensors: the rows of all workers are gathered, padded to the longest, and added
    in the order of the workers, so that each comes to the same bits. Every worker takes part, also one without any.

    Args:
        own: This worker's distinct rows, int64[n], on the device.
        finder: Of the table's rows; None: no other worker has these rows.
    """

    def __init__(self, own: Tensor, finder: RowFinder | None) -> None:
        self.own = own
        self.rows = own
        """Distinct rows of all workers, int64."""
        self._counts: list[int] = []
        self._positions: list[Tensor] = []
        if finder is None or not is_group():
            return
        size = dist.get_world_size()
        self._counts = _all_gather(torch.tensor([len(own)], device=own.device), size).flatten().tolist()
        gathered = _all_gather(_padded(own, max(self._counts)), size)
        parts = [part[:count] for part, count in zip(gathered, self._counts, strict=True)]
        self.rows, positions = _distinct(finder, torch.cat(parts))
        self._positions = list(torch.split(positions, self._counts))

    def total(self, gradients: Tensor) -> Tensor:
        """Returns the sums over workers of the gradients of `rows`.

        Args:
            gradients: Of this worker's rows, float32[n, W].
        """
        if not self._counts:
            return gradients
        total = gradients.new_zeros(len(self.rows), gradients.shape[1])
        gathered = _all_gather(_padded(gradients, max(self._counts)), len(self._counts))
        for part, positions in zip(gathered, self._positions, strict=True):
            total.index_add_(0, positions, part[: len(positions)])
        return total


def _padded(tensor: Tensor, length: int) -> Tensor:
    return torch.cat([tensor, tensor.new_zeros(length - len(tensor), *tensor.shape[1:])])


def _all_gather(tensor: Tensor, size: int) -> Tensor:
    """Returns the tensors of all workers, which have the same shape, stacked."""
    gathered = tensor.new_empty(size, *tensor.shape)
    dist.all_gather_into_tensor(gathered.view(-1, *tensor.shape[1:]), tensor)
    return gathered


def _distinct(finder: RowFinder, rows: Tensor) -> tuple[Tensor, Tensor]:
    if rows.device.type != "cpu":
        distinct, positions = torch.unique(rows, return_inverse=True)
        return distinct, positions
    found = finder(rows.numpy())
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])
