"""The loop over epochs of one process alone, or of each worker of a torch process group."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist

from ray_recsys.core.counter_random import derive_key
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.data_parallel import is_group
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import RecsysError

_DROPOUT = 6  # separates these random numbers from others under the same seed


class EpochFeed(Protocol):
    """A worker's batches."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of an epoch, counted from 1: the same number on every worker, empty ones included."""
        ...


def train_epochs(
    trainer: Trainer, feed: EpochFeed, validation: Validation, seed: int, on_epoch: Callable[[EpochRecord, bool], None]
) -> None:
    """Trains until the trainer is done.

    Args:
        trainer: This worker's.
        feed: This worker's.
        validation: This worker's share of the validation users.
        seed: Of dropout.
        on_epoch: Called on every worker after each epoch with its record and whether it is the best so far.

    Raises:
        StageError: The loss or a validation score is not finite; raised on all workers.
    """
    recipe = trainer.recipe
    rank = dist.get_rank() if is_group() else 0
    while not trainer.is_done:
        epoch = trainer.progress.num_epochs + 1
        # Dropout draws from torch's global generator; seeded here, an epoch is the same after a restart.
        torch.manual_seed(derive_key(seed, _DROPOUT, epoch, rank))
        start_s = time.perf_counter()
        my_loss, my_pairs, num_positives = trainer.run_epoch(feed.batches(epoch))
        loss_sum, num_pairs = _sum_over_workers(trainer.device, my_loss, my_pairs)
        loss = loss_sum / max(1, num_positives)
        trainer.check_loss(epoch, loss)
        train_s = time.perf_counter() - start_s
        is_due = epoch % recipe.validate_every_epochs == 0 or epoch == recipe.epochs
        sums = _measure(trainer, validation) if is_due else MetricSums()
        record = EpochRecord(
            epoch=epoch,
            loss=loss,
            metrics=sums.means() if sums.num_users else {},
            samples_per_s=num_pairs / train_s,
            train_s=train_s,
            validate_s=time.perf_counter() - start_s - train_s,
        )
        on_epoch(record, trainer.finish_epoch(record))


def _measure(trainer: Trainer, validation: Validation) -> MetricSums:
    """Returns the sums over all workers' users; an error of one is raised on all, which would wait for it otherwise."""
    mine: MetricSums | RecsysError
    try:
        mine = validation.measure(trainer.model.export())
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


def _sum_over_workers(device: torch.device, *values: float) -> list[float]:
    if not is_group():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    result: list[float] = sums.tolist()
    return result
