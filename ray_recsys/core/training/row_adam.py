"""Adam for embedding tables of which a step touches a few rows; the cost of a step does not grow with the tables.

The update is lazy: a row that a step does not touch keeps its weights, its moments and its step count. So a row's
moments average over the steps that touched it, and bias correction counts those steps alone. Where every step touches
every row, this is Adam itself. Elsewhere it differs: dense Adam keeps moving a row by its momentum after the last
gradient, and its second moment decays in between, so that a row touched every n steps moves about sqrt(n) times as far.

Shapes: R rows of a table, n rows touched, W columns of all tables side by side.

Source: Kingma, Ba: Adam, ICLR 2015, algorithm 1. Lazy updates: TensorFlow's LazyAdam; torch.optim.SparseAdam, which
    counts steps per table instead of per row.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
_BLOCK_VALUES = 1 << 16  # of a block of rows, whose intermediate results stay in the cache: 256 kB


class RowAdam:
    """The state of tables with the same rows.

    Args:
        tables: float32[R, ...] each; updated in place.
    """

    def __init__(self, tables: Sequence[Tensor]) -> None:
        self._tables = [table.detach() for table in tables]
        num_rows, device = len(tables[0]), tables[0].device
        self.widths = [math.prod(table.shape[1:]) for table in tables]
        self.moments = torch.zeros(num_rows, 2, sum(self.widths), device=device)
        """Averages of the gradients and of their squares, float32[R, 2, W]; a step reads both of a row at once."""
        self.num_steps = torch.zeros(num_rows, dtype=torch.int32, device=device)
        """Steps that touched each row, int32[R]."""

    def state(self) -> dict[str, Tensor]:
        """Returns the optimizer state by name; shared, not copied."""
        return {"moments": self.moments, "num_steps": self.num_steps}

    @torch.no_grad()
    def update(self, rows: Tensor, gradients: Tensor, learning_rate: float) -> None:
        """Makes one step for the given rows.

        Args:
            rows: Distinct, int64[n].
            gradients: float32[n, W], the tables' side by side; overwritten.
            learning_rate: Of this step.
        """
        if not len(rows):
            return
        steps = self.num_steps.index_select(0, rows).add_(1)
        self.num_steps.index_copy_(0, rows, steps)
        corrections = [
            -torch.expm1(steps.unsqueeze(1) * math.log(beta)) for beta in (_BETA_1, _BETA_2)
        ]  # 1 - beta^steps
        num_rows = max(1, _BLOCK_VALUES // max(1, gradients.shape[1]))
        blocks = (torch.split(part, num_rows) for part in (rows, gradients, corrections[0], corrections[1].sqrt_()))
        for part, gradient, *scales in zip(*blocks, strict=True):
            changes = self._changes(part, gradient, *scales).mul_(-learning_rate)
            for table, change in zip(self._tables, torch.split(changes, self.widths, dim=1), strict=True):
                updated = table.index_select(0, part).add_(change.reshape(-1, *table.shape[1:]))
                table.index_copy_(0, part, updated)  # index_add_ is slower for rows in order

    def _changes(self, rows: Tensor, gradient: Tensor, correction_1: Tensor, correction_2: Tensor) -> Tensor:
        """Updates the moments of some rows; returns what is added to the rows, divided by minus the learning rate."""
        moments = self.moments.index_select(0, rows)
        mean, square = moments[:, 0].lerp_(gradient, 1 - _BETA_1), moments[:, 1]
        square.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        self.moments.index_copy_(0, rows, moments)
        return mean / square.sqrt_().div_(correction_2).add_(_EPSILON).mul_(correction_1)
