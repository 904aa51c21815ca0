"""A worker's optimizer step: dense, where it updates all parameters, or sparse, where it updates the batch's rows.

The sparse step finds the distinct rows of the batch, gathers them into small tables, and runs the model's loss on those
with renumbered indices, transparently to the model. Work per table row, such as the item half of NeuMF's first layer,
is done once per distinct item. Of several workers each has the rows of its own users alone, which are never sent; rows
of items are the same on all.

Shapes: n distinct rows of a batch, W columns of all tables of a kind side by side.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from ray_recsys.config import TrainRecipe
from ray_recsys.core.arrays import Integers
from ray_recsys.core.models.contract import USERS, GradientModel, TensorBatch
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.data_parallel import copy_from_first, sum_over_workers
from ray_recsys.core.training.device_copies import to_tensors
from ray_recsys.core.training.row_adam import RowAdam
from ray_recsys.core.training.rows import RowFinder, TouchedRows


class Learner(Protocol):
    """Makes optimizer steps."""

    def step(self, batch: Batch | TensorBatch, learning_rate: float) -> Tensor:
        """Makes a step; returns this worker's share of the loss, on the device. Every worker must call it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state without the rows of users: tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        ...


def is_sparse(recipe: TrainRecipe, *, splits_users: bool) -> bool:
    """Whether a step updates the rows of its batch only, for a model that can be trained so or not."""
    return recipe.optimizer == "sparse_adam" and splits_users


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Returns a context in which matrix products have the precision of `train.precision`."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class DenseLearner:
    """Adam over all parameters.

    Args:
        model: On its device.
        recipe: Optimization.
        wrap: Makes the model data-parallel so that gradients are summed (not averaged) over workers.
    """

    def __init__(self, model: GradientModel, recipe: TrainRecipe, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
        self._device = next(model.parameters()).device
        self._precision = recipe.precision
        self._loss = wrap(model)

    def step(self, batch: Batch | TensorBatch, learning_rate: float) -> Tensor:
        """Makes a step; returns this worker's share of the loss, on the device."""
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.zero_grad()
        with computing_in(self._precision, self._device):
            loss: Tensor = self._loss(to_tensors(batch, self._device) if isinstance(batch, Batch) else batch)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns Adam's state."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores Adam's state."""
        self.optimizer.load_state_dict(dict(state))


@dataclass(frozen=True, slots=True)
class SparseGradients:
    """Result of a sparse step."""

    loss: Tensor
    """This worker's share."""
    rows: dict[str, tuple[Tensor, Tensor]]
    """Distinct rows, int64[n], and the gradients of their tables side by side, float32[n, W], by field of the batch.
    Of users this worker's own, of items those of all workers."""
    dense: list[Tensor]
    """Of the parameters that are no table, over all workers."""


class SparseLearner:
    """Adam over the rows of each batch, and over all parameters that are no table.

    Args:
        model: On its device; of its user tables only the rows of this worker's users.
        recipe: Optimization.
        users: Those whose rows the model has.
    """

    def __init__(self, model: GradientModel, recipe: TrainRecipe, users: range) -> None:
        self._model, self.users, self._precision = model, users, recipe.precision
        parameters = dict(model.named_parameters())
        self._device = next(iter(parameters.values())).device
        tables = {field: [n for n in names if n in parameters] for field, names in model.batch_tables.items()}
        self._tables = {
            field: _Tables({name: parameters[name] for name in names}, is_shared=field != USERS)
            for field, names in tables.items()
            if names
        }
        in_tables = {name for names in tables.values() for name in names}
        self._dense = [parameter for name, parameter in parameters.items() if name not in in_tables]
        self.optimizer = torch.optim.Adam(self._dense, lr=recipe.learning_rate, fused=True)
        users_alone = set(tables.get(USERS, ()))
        copy_from_first([parameter.detach() for name, parameter in parameters.items() if name not in users_alone])

    @property
    def user_optimizer(self) -> RowAdam:
        """The state of this worker's rows of users."""
        return self._tables[USERS].optimizer

    def step(self, batch: Batch | TensorBatch, learning_rate: float) -> Tensor:
        """Makes a step; returns this worker's share of the loss, on the device."""
        assert isinstance(batch, Batch), "rows are found on the host"
        found = self.gradients(batch)
        for field, (rows, gradients) in found.rows.items():
            self._tables[field].optimizer.update(rows, gradients, learning_rate)
        for parameter, gradient in zip(self._dense, found.dense, strict=True):
            parameter.grad = gradient
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        return found.loss

    def gradients(self, batch: Batch) -> SparseGradients:
        """Returns the loss of this worker and the gradients of all workers' losses; every worker must call it."""
        touched: dict[str, TouchedRows] = {}
        numbers: dict[str, Any] = {}
        for field, tables in self._tables.items():
            idx = batch.user_idx - self.users.start if field == USERS else getattr(batch, field)
            touched[field], numbers[field] = tables.find(idx, self._device)
        leaves = {
            name: leaf for field, tables in self._tables.items() for name, leaf in tables.gather(touched[field].own)
        }
        local = replace(to_tensors(batch, self._device), **numbers)
        with computing_in(self._precision, self._device):
            loss: Tensor = functional_call(self._model, leaves, (local,))
        gradients = torch.autograd.grad(loss, [*leaves.values(), *self._dense], materialize_grads=True)
        of_leaves = dict(zip(leaves, gradients, strict=False))
        rows = {field: tables.total(touched[field], of_leaves) for field, tables in self._tables.items()}
        return SparseGradients(loss.detach(), rows, sum_over_workers(gradients[len(leaves) :]))

    def state_dict(self) -> dict[str, Any]:
        """Returns the optimizer's state without that of users' rows."""
        shared = {field: tables.optimizer.state() for field, tables in self._tables.items() if field != USERS}
        return {"dense": self.optimizer.state_dict(), **shared}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores it."""
        self.optimizer.load_state_dict(state["dense"])
        for field, tables in self._tables.items():
            if field != USERS:
                for name, tensor in tables.optimizer.state().items():
                    tensor.copy_(state[field][name])


class _Tables:
    """The tables of which a field of the batch names the rows."""

    def __init__(self, tables: Mapping[str, nn.Parameter], *, is_shared: bool) -> None:
        self.optimizer = RowAdam(list(tables.values()))
        self._tables, self._is_shared = tables, is_shared
        self._finder = RowFinder(len(next(iter(tables.values()))))

    def find(self, idx: Integers, device: torch.device) -> tuple[TouchedRows, Tensor]:
        """Returns the distinct rows, and each index as a number among them; negative indices stay as they are."""
        is_none = idx < 0
        own, numbers = self._finder(np.where(is_none, 0, idx) if is_none.any() else idx)
        rows = torch.from_numpy(own).to(device, non_blocking=True)
        touched = TouchedRows(rows, self._finder if self._is_shared else None)
        return touched, torch.from_numpy(np.where(is_none, idx, numbers)).to(device, non_blocking=True)

    def gather(self, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yields small tables of some rows, leaves of the step's graph, by the names of the large ones."""
        for name, table in self._tables.items():
            yield name, table.detach().index_select(0, rows).requires_grad_()

    def total(self, touched: TouchedRows, gradients: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the rows that any worker touched and the sums of their gradients, [n, W], from those by table."""
        widths = zip(self._tables, self.optimizer.widths, strict=True)
        own = [gradients[name].view(len(touched.own), width) for name, width in widths]
        return touched.rows, touched.total(torch.cat(own, dim=1))
