"""Initial rows of tables that are split among workers: a row is the same whichever worker has it."""

import torch
from torch import Tensor

from ray_recsys.core.counter_random import derive_key

_BLOCK = 4096  # rows drawn from one key


@torch.no_grad()
def draw_rows(table: Tensor, *, std: float, key: int, first_row: int) -> None:
    """Fills a part of a table with normal numbers around 0.

    Args:
        table: Rows `first_row..` of the whole table, on the CPU.
        std: Standard deviation.
        key: Of the whole table.
        first_row: Index of row 0 in the whole table.
    """
    end, block = first_row + len(table), torch.empty(_BLOCK, *table.shape[1:])
    for number in range(first_row // _BLOCK, -(-end // _BLOCK)):
        begin = number * _BLOCK
        block.normal_(std=std, generator=torch.Generator().manual_seed(derive_key(key, number) >> 1))
        low, high = max(begin, first_row), min(begin + _BLOCK, end)
        table[low - first_row : high - first_row] = block[low - begin : high - begin]
