"""One training run's state and its steps: model, optimizer, learning-rate warm-up, early stopping."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ray_recsys.config import TrainRecipe
from ray_recsys.core.models.contract import GradientModel, Model, TensorBatch
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.device_copies import copied_ahead
from ray_recsys.core.training.learner import DenseLearner, Learner, SparseLearner, is_sparse


@dataclass(frozen=True, slots=True)
class DecidingMetric:
    """The validation metric that early stopping and the best epoch follow."""

    label: str
    is_error: bool
    """Whether lower is better."""

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        return value < than if self.is_error else value > than


def deciding_metric(train: TrainRecipe) -> DecidingMetric:
    """Returns RMSE for explicit ratings, NDCG@10 otherwise."""
    return DecidingMetric("RMSE", True) if train.objective == "explicit" else DecidingMetric("NDCG@10", False)


@dataclass(slots=True)
class EpochRecord:
    """The result of an epoch; a line of curves.csv."""

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


@dataclass(frozen=True, slots=True)
class PartialEpoch:
    """Sums over an epoch's first steps, over all workers."""

    num_steps: int = 0
    loss_sum: float = 0.0
    """Of loss × global batch size."""
    num_pairs: int = 0
    num_positives: int = 0
    train_s: float = 0.0


@dataclass(slots=True)
class Progress:
    """The epochs and steps that a run has completed."""

    records: list[EpochRecord] = field(default_factory=list)
    num_steps: int = 0
    partial: PartialEpoch = PartialEpoch()
    """Of the epoch after the last record."""
    best_epoch: int = 0
    """The first epoch with the best validation; without any validation, the last epoch. 0: none yet."""

    @property
    def num_epochs(self) -> int:
        """Finished epochs."""
        return len(self.records)

    @property
    def best_metrics(self) -> dict[str, float]:
        """Validation metrics of the best epoch."""
        return self.records[self.best_epoch - 1].metrics if self.best_epoch else {}


def is_done(progress: Progress, recipe: TrainRecipe, num_epochs: int | None = None) -> bool:
    """Whether training is complete: all epochs ran, or validation stopped improving.

    Args:
        progress: Completed epochs and steps.
        recipe: Its epochs and patience.
        num_epochs: Epochs instead of the recipe's.
    """
    patience = recipe.early_stopping_epochs
    if progress.num_epochs >= (num_epochs or recipe.epochs):
        return True
    if patience is None or not progress.records or not progress.records[-1].metrics:
        return False
    return progress.num_epochs - progress.best_epoch >= patience


class Trainer:
    """Trains a model epoch by epoch.

    Args:
        model: With its initial weights; it is moved to the device.
        recipe: Optimization.
        steps_per_epoch: Optimizer steps of an epoch; they stretch the learning-rate schedule.
        num_epochs: Epochs to run at most; None: those of the recipe, which the schedule follows in any case.
        device: Where the model is trained.
        wrap: Makes the model data-parallel so that gradients are summed (not averaged) over workers.
        users: The only users whose rows the model has, where the optimizer is sparse; None: all users.
    """

    def __init__(
        self,
        model: GradientModel,
        recipe: TrainRecipe,
        *,
        steps_per_epoch: int = 1,
        num_epochs: int | None = None,
        device: torch.device | None = None,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
        users: range | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device)
        self.progress = Progress()
        self.metric = deciding_metric(recipe)
        self.learner: Learner
        if is_sparse(recipe, splits_users=bool(model.batch_tables)):
            users = range(model.num_users) if users is None else users
            self.learner = SparseLearner(self.model, recipe, users)
        else:
            self.learner = DenseLearner(self.model, recipe, wrap)
        self.average: AveragedModel | None = None
        """The mean of the weights over steps, with `ema_decay`; its first step is a copy of the model."""
        if recipe.ema_decay is not None:
            self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema_decay))
        self._num_steps = steps_per_epoch * recipe.epochs
        self._num_epochs = num_epochs or recipe.epochs

    @property
    def users(self) -> range | None:
        """The users whose rows this worker has, and no other one; None: every worker has all rows."""
        return self.learner.users if isinstance(self.learner, SparseLearner) else None

    @property
    def is_done(self) -> bool:
        """Whether all epochs ran, or validation has not improved for `early_stopping_epochs`."""
        return is_done(self.progress, self.recipe, self._num_epochs)

    def step(self, batch: Batch | TensorBatch) -> Tensor:
        """Makes one optimizer step; returns this worker's share of the loss, on the device.

        A step may have no positives on any worker, where a batch is smaller than the number of workers; it is skipped.
        """
        if not batch.global_batch_size:
            self.progress.num_steps += 1
            return torch.zeros((), device=self.device)
        loss = self.learner.step(batch, self.learning_rate(self.progress.num_steps))
        self.progress.num_steps += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return loss

    def export(self) -> Model:
        """Returns the trained model, of the average weights if there are any; it shares them with the trainer."""
        if self.average is None or not self.average.n_averaged:
            return self.model.export()
        return cast("GradientModel", self.average.module).export()

    def ahead(self, batches: Iterable[Batch | TensorBatch]) -> Iterable[Batch | TensorBatch]:
        """Returns the batches as `step` takes them; copied to a GPU while the step before runs."""
        is_copied = self.device.type == "cuda" and isinstance(self.learner, DenseLearner)
        return copied_ahead(batches, self.device) if is_copied else batches

    def learning_rate(self, step: int) -> float:
        """Returns the rate of a step, counted from 0 over the whole run."""
        recipe = self.recipe
        rate = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
        if recipe.learning_rate_schedule == "linear":
            rate *= max(0.0, 1 - step / self._num_steps)
        return rate

    def finish_epoch(self, record: EpochRecord) -> bool:
        """Records an epoch; returns whether it is the best so far."""
        progress, label = self.progress, self.metric.label
        progress.records.append(record)
        progress.partial = PartialEpoch()
        best, value = progress.best_metrics.get(label), record.metrics.get(label)
        if best is None or (value is not None and self.metric.is_better(value, best)):
            progress.best_epoch = record.epoch
        return progress.best_epoch == record.epoch
