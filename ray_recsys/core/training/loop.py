"""The epoch loop of a single process, or of each worker of a torch process group."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from ray_recsys.core.arrays import Float64s
from ray_recsys.core.counter_random import derive_key
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.models.contract import TensorBatch
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.data_parallel import is_group
from ray_recsys.core.training.trainer import EpochRecord, PartialEpoch, Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import RecsysError, StageError

_DROPOUT = 6  # separates these random numbers from others under the same seed
_SEED_STRIDE = 0x9E3779B97F4A7C15  # odd: the seeds of an epoch's steps differ
_MAX_UNREAD_LOSSES = 1024


class EpochFeed(Protocol):
    """A worker's batches."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch] | Iterator[TensorBatch]:
        """Yields an epoch's batches from a step on: the same number on every worker, empty ones included."""
        ...


def train_epochs(
    trainer: Trainer,
    feed: EpochFeed,
    validation: Validation,
    seed: int,
    on_epoch: Callable[[EpochRecord, bool], None],
    *,
    on_checkpoint: Callable[[], None] | None = None,
) -> None:
    """Trains until the trainer is done, from the step that its progress names.

    Args:
        trainer: This worker's.
        feed: This worker's.
        validation: This worker's share of the validation users.
        seed: Of dropout.
        on_epoch: Called on every worker after each epoch with its record and whether it is the best so far.
        on_checkpoint: Called on every worker after the same step when `train.checkpoint_every_s` have passed since the
            last call or epoch; the trainer's progress is up to date then.

    Raises:
        StageError: The loss or a validation score is not finite; raised on all workers.
    """
    recipe = trainer.recipe
    while not trainer.is_done and not _is_out_of_time(trainer):
        epoch = trainer.progress.num_epochs + 1
        total = _train_epoch(trainer, feed, seed, on_checkpoint)
        start_s = time.perf_counter()
        is_due = epoch % recipe.validate_every_epochs == 0 or epoch == recipe.epochs
        sums = _measure(trainer, validation) if is_due else MetricSums()
        record = EpochRecord(
            epoch=epoch,
            loss=total.loss_sum / max(1, total.num_positives),
            metrics=sums.means() if sums.num_users else {},
            samples_per_s=total.num_pairs / total.train_s,
            train_s=total.train_s,
            validate_s=time.perf_counter() - start_s,
        )
        on_epoch(record, trainer.finish_epoch(record))


def _is_out_of_time(trainer: Trainer) -> bool:
    """Whether another epoch as long as the mean one would exceed the limit, on the slowest worker."""
    limit_s, records = trainer.recipe.max_time_s, trainer.progress.records
    if limit_s is None or not records or trainer.progress.partial.num_steps:
        return False
    spent_s = sum(record.train_s + record.validate_s for record in records)
    (next_s,) = _reduce(trainer.device, dist.ReduceOp.MAX, spent_s + spent_s / len(records))
    return next_s > limit_s


def _train_epoch(
    trainer: Trainer, feed: EpochFeed, seed: int, on_checkpoint: Callable[[], None] | None
) -> PartialEpoch:
    """Runs the remaining steps of an epoch; returns the sums of the whole epoch."""
    progress, every_s = trainer.progress, trainer.recipe.checkpoint_every_s
    epoch, rank = progress.num_epochs + 1, dist.get_rank() if is_group() else 0
    epoch_seed = derive_key(seed, _DROPOUT, epoch, rank)
    part, timer = _Part(trainer), _CheckpointTimer(every_s, trainer.device)
    trainer.model.train()
    for batch in trainer.ahead(feed.batches(epoch, progress.partial.num_steps)):
        # Dropout draws from torch's global generator; seeded at each step, it is the same after a restart.
        _seed(trainer.device, (epoch_seed + _SEED_STRIDE * progress.num_steps) % 2**64)
        part.add(batch, trainer.step(batch))
        if on_checkpoint is not None and timer.is_due():
            progress.partial = part.total()
            on_checkpoint()
            part, timer = _Part(trainer), _CheckpointTimer(every_s, trainer.device)
            trainer.model.train()
    return part.total()


def _seed(device: torch.device, seed: int) -> None:
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would ask every other kind of device too


class _Part:
    """The steps since the epoch's start or the last checkpoint. Losses stay on the device: reading one waits for it."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._first_step = trainer.progress.num_steps
        self._sizes: list[int] = []
        self._num_pairs = 0
        self._unread: list[torch.Tensor] = []
        self._losses: list[Float64s] = []
        self._start_s = time.perf_counter()

    def add(self, batch: Batch | TensorBatch, loss: torch.Tensor) -> None:
        """Counts a step."""
        self._num_pairs += batch.num_pairs
        self._sizes.append(batch.global_batch_size)
        self._unread.append(loss)
        if len(self._unread) == _MAX_UNREAD_LOSSES:
            self._read()

    def total(self) -> PartialEpoch:
        """Returns the epoch's sums over all workers up to here.

        Raises:
            StageError: A loss is not finite; names the first such step, on all workers.
        """
        self._read()
        losses, sizes = np.concatenate([*self._losses, np.zeros(0)]), np.array(self._sizes, np.int64)
        before, device = self._trainer.progress.partial, self._trainer.device
        loss_sum, num_pairs = _reduce(device, dist.ReduceOp.SUM, float(losses @ sizes), self._num_pairs)
        if not math.isfinite(loss_sum):
            (step,) = _reduce(device, dist.ReduceOp.MIN, int(np.argmin(np.isfinite(np.append(losses, np.nan)))))
            raise self._divergence(min(int(step), len(sizes) - 1))
        return PartialEpoch(
            num_steps=before.num_steps + len(sizes),
            loss_sum=before.loss_sum + loss_sum,
            num_pairs=before.num_pairs + int(num_pairs),
            num_positives=before.num_positives + int(sizes.sum()),
            train_s=before.train_s + time.perf_counter() - self._start_s,
        )

    def _read(self) -> None:
        if self._unread:
            self._losses.append(torch.stack(self._unread).double().cpu().numpy())
            self._unread = []

    def _divergence(self, step: int) -> StageError:
        progress = self._trainer.progress
        rate = self._trainer.learning_rate(self._first_step + step)
        return StageError(
            f"training diverged: the loss is not finite in epoch {progress.num_epochs + 1}, step "
            f"{progress.partial.num_steps + step + 1} (step {self._first_step + step + 1} of the run), with learning "
            f"rate {rate:g} and a batch of {self._sizes[step]} positives",
            remedy=f"lower train.learning_rate ({self._trainer.recipe.learning_rate:g}) or raise train.warmup_steps",
        )


class _CheckpointTimer:
    """Tells all workers after the same step that a checkpoint is due; they agree rarely, since agreeing costs time."""

    def __init__(self, every_s: float, device: torch.device) -> None:
        self._every_s, self._device = every_s, device
        self._start_s = time.perf_counter()
        self._num_steps, self._next_check = 0, 1

    def is_due(self) -> bool:
        """Call it after each step."""
        self._num_steps += 1
        if self._num_steps < self._next_check:
            return False
        (elapsed_s,) = _reduce(self._device, dist.ReduceOp.MAX, time.perf_counter() - self._start_s)
        steps_left = (self._every_s / max(elapsed_s, 1e-9) - 1) * self._num_steps
        self._next_check = self._num_steps + max(1, int(min(steps_left, self._num_steps)))
        return elapsed_s >= self._every_s


def _measure(trainer: Trainer, validation: Validation) -> MetricSums:
    """Returns the sums over all workers' users; an error of one is raised on all, which would wait for it otherwise."""
    mine: MetricSums | RecsysError
    try:
        mine = validation.measure(trainer.export())
    except RecsysError as error:
        mine = error
    parts = [mine]
    if is_group():
        parts *= dist.get_world_size()
        dist.all_gather_object(parts, mine)
    for part in parts:
        if isinstance(part, RecsysError):
            raise part
    return MetricSums.total(part for part in parts if isinstance(part, MetricSums))


def _reduce(device: torch.device, operation: dist.ReduceOp.RedOpType, *values: float) -> list[float]:
    """Returns the values reduced over workers."""
    if not is_group():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor, operation)
    result: list[float] = tensor.tolist()
    return result
