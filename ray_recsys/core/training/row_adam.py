"""Adam for embedding tables of which a step touches a few rows; the cost of a step does not grow with the tables.

The update is lazy: a row that a step does not touch keeps its weights, its moments and its step count. So a row's
moments average over the steps that touched it, and bias correction counts those steps alone. Where every step touches
every row, this is Adam itself. Elsewhere it differs: Adam goes on moving a row by its momentum after the last gradient,
and lets the second moment decay in between, so that a row touched every n steps moves about sqrt(n) times as far.

Shapes: R rows of a table, n rows touched, W columns of all tables side by side.

Source: Kingma, Ba: Adam, ICLR 2015, algorithm 1. Lazy updates: TensorFlow's LazyAdam; torch.optim.SparseAdam, which
    counts steps per table instead of per row.
"""

import math
from collections.abc import Iterator, Sequence

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
        self.means = torch.zeros(num_rows, sum(self.widths), device=device)
        """Averages of the gradients, float32[R, W]."""
        self.squares = torch.zeros_like(self.means)
        """Averages of their squares, float32[R, W]."""
        self.num_steps = torch.zeros(num_rows, dtype=torch.int32, device=device)
        """Steps that touched each row, int32[R]."""

    def state(self) -> dict[str, Tensor]:
        """Returns what there is beside the tables, by name; shared, not copied."""
        return {"means": self.means, "squares": self.squares, "num_steps": self.num_steps}

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
        num_rows = max(1, _BLOCK_VALUES // max(1, gradients.shape[1]))
        for part, gradient in zip(torch.split(rows, num_rows), torch.split(gradients, num_rows), strict=True):
            for table, change in zip(self._tables, self._changes(part, gradient, learning_rate), strict=True):
                table.index_add_(0, part, change.view(-1, *table.shape[1:]))

    def _changes(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> Iterator[Tensor]:
        """Updates the state of some rows; yields what is added to those of each table."""
        steps = self.num_steps.index_select(0, rows).add_(1)
        self.num_steps.index_copy_(0, rows, steps)
        mean = self.means.index_select(0, rows).lerp_(gradient, 1 - _BETA_1)
        self.means.index_copy_(0, rows, mean)
        square = self.squares.index_select(0, rows).mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        self.squares.index_copy_(0, rows, square)
        exponents = steps.double()
        correction_1 = (1 - _BETA_1**exponents).float().unsqueeze(1)
        correction_2 = (1 - _BETA_2**exponents).sqrt_().float().unsqueeze(1)
        scale = square.sqrt_().div_(correction_2).add_(_EPSILON).mul_(correction_1)
        changes = mean.div_(scale).mul_(-learning_rate)
        yield from (part.contiguous() for part in torch.split(changes, self.widths, dim=1))
