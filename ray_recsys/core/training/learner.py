"""One training run's state and its epochs: model, optimizer, warm-up and early stopping.

This module does not know where batches come from, how gradients of workers are added, or how state is stored.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ray_recsys.config import Recipe
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.objective import Objective
from ray_recsys.errors import StageError

METRIC = "NDCG@10"


@dataclass(slots=True)
class EpochRecord:
    """What is known of a finished epoch; a line of curves.csv."""

    epoch: int
    """Counted from 1."""
    loss: float
    """Mean over the epoch's positives."""
    metrics: dict[str, float]
    """Validation metrics; empty for an epoch without validation."""
    samples_per_s: float
    """Pairs scored and back-propagated by all workers, per second of the epoch without validation."""
    train_s: float
    validate_s: float


@dataclass(slots=True)
class Progress:
    """How far a run is."""

    records: list[EpochRecord] = field(default_factory=list)
    num_steps: int = 0
    best_epoch: int = 0
    """Of the first epoch with the best validation; without any validation, the last epoch."""

    @property
    def num_epochs(self) -> int:
        """Finished epochs."""
        return len(self.records)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Validation metrics of the best epoch."""
        return self.records[self.best_epoch - 1].metrics if self.best_epoch else {}


class Learner:
    """Trains a NeuMF epoch by epoch.

    Args:
        recipe: Model, train and seed.
        num_users: U.
        num_items: I.
        device: Where the model lives.
        wrap: Makes the objective data-parallel so that gradients are summed (not averaged) over workers.
    """

    def __init__(
        self,
        recipe: Recipe,
        num_users: int,
        num_items: int,
        *,
        device: torch.device | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cpu")
        generator = torch.Generator().manual_seed(recipe.seed)
        self.model = NeuMF(num_users, num_items, recipe.model, generator=generator).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=recipe.train.learning_rate, fused=True)
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}
        self._objective = wrap(Objective(self.model, recipe.train))

    @property
    def is_done(self) -> bool:
        """Whether all epochs ran, or the last one's validation shows that it has not become better for long enough."""
        progress, patience = self.progress, self.recipe.train.early_stopping_epochs
        if progress.num_epochs >= self.recipe.train.epochs:
            return True
        if patience is None or not progress.records or not progress.records[-1].metrics:
            return False
        return progress.num_epochs - progress.best_epoch >= patience

    def run_epoch(self, batches: Iterable[Batch]) -> tuple[float, int, int]:
        """Steps through an epoch's batches.

        Returns:
            This worker's sum over steps of loss × global batch, its number of pairs, and the epoch's positives over
            all workers. The sums of the first over workers, divided by the last, are the mean loss.
        """
        self.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        num_pairs = num_positives = 0
        for batch in batches:
            total += self._step(batch) * batch.global_batch_size
            num_pairs += batch.item_idx.size
            num_positives += batch.global_batch_size
        return float(total), num_pairs, num_positives

    def check_loss(self, epoch: int, loss: float) -> None:
        """Checks an epoch's mean loss over all workers.

        Raises:
            StageError: It is not finite.
        """
        if not math.isfinite(loss):
            raise StageError(
                f"training diverged: loss {loss} in epoch {epoch}; lower train.learning_rate "
                f"({self.recipe.train.learning_rate})"
            )

    def finish_epoch(self, record: EpochRecord) -> None:
        """Takes note of an epoch, and of its weights if its validation is the best so far."""
        progress = self.progress
        progress.records.append(record)
        best = progress.best_metrics.get(METRIC)
        value = record.metrics.get(METRIC)
        if best is None or (value is not None and value > best):
            progress.best_epoch = record.epoch
            self.best_weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def _step(self, batch: Batch) -> Tensor:
        train = self.recipe.train
        rate = train.learning_rate * min(1.0, (self.progress.num_steps + 1) / max(1, train.warmup_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss: Tensor = self._objective(
            self._tensor(batch.user_idx),
            self._tensor(batch.item_idx),
            self._tensor(batch.weight),
            None if batch.rating is None else self._tensor(batch.rating),
            batch.global_batch_size,
        )
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.progress.num_steps += 1
        return loss.detach()

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)
