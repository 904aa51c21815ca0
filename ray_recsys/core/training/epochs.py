"""The loop over epochs that every trainer runs: one process alone, or each worker of a torch process group.

This module does not know who started the processes, nor what happens to an epoch's record.
"""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ray_recsys.core.counter_random import derive_key
from ray_recsys.core.evaluation.metrics import MetricSums
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.learner import EpochRecord, Learner
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import RecsysError

_PURPOSE = 6  # keeps dropout apart from other random numbers under the same seed


class EpochFeed(Protocol):
    """Where a worker's batches come from; see `core.sampling.epoch_stream`."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yields the batches of an epoch, counted from 1: as many on every worker, empty ones included."""
        ...


def train_epochs(
    learner: Learner, feed: EpochFeed, validation: Validation, on_epoch: Callable[[EpochRecord], None]
) -> None:
    """Trains until the learner is done; calls `on_epoch` on every worker after each epoch.

    Raises:
        StageError: The loss or a validation score is not finite; on all workers alike.
    """
    recipe = learner.recipe
    rank = dist.get_rank() if _is_group() else 0
    while not learner.is_done:
        epoch = learner.progress.num_epochs + 1
        if getattr(recipe.model, "dropout", 0.0):
            # Dropout knows the global generator alone; seeded here, an epoch is the same after a restart.
            torch.manual_seed(derive_key(recipe.seed, _PURPOSE, epoch, rank))
        start_s = time.perf_counter()
        my_loss, my_pairs, num_positives = learner.run_epoch(feed.batches(epoch))
        loss_sum, num_pairs = _sum_over_workers(learner.device, my_loss, my_pairs)
        loss = loss_sum / max(1, num_positives)
        learner.check_loss(epoch, loss)
        train_s = time.perf_counter() - start_s
        is_due = epoch % recipe.train.validate_every_epochs == 0 or epoch == recipe.train.epochs
        sums = _measure(learner, validation) if is_due else MetricSums()
        record = EpochRecord(
            epoch=epoch,
            loss=loss,
            metrics=sums.means() if sums.num_users else {},
            samples_per_s=num_pairs / train_s,
            train_s=train_s,
            validate_s=time.perf_counter() - start_s - train_s,
        )
        learner.finish_epoch(record)
        on_epoch(record)


class GradientBucket(Protocol):
    """What DDP gives to a communication hook."""

    def buffer(self) -> Tensor:
        """Returns the gradients as one flat tensor."""
        ...


def sum_gradients(bucket: GradientBucket) -> torch.futures.Future[Tensor]:
    """Adds a bucket's gradients over workers; DDP would average, but losses are divided by the global batch already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


def _measure(learner: Learner, validation: Validation) -> MetricSums:
    """Returns the sums over all workers' users; an error of one is raised on all, which would wait for it otherwise."""
    mine: MetricSums | RecsysError
    try:
        mine = validation.measure(learner.model)
    except RecsysError as error:
        mine = error
    parts = [mine]
    if _is_group():
        parts *= dist.get_world_size()
        dist.all_gather_object(parts, mine)
    for part in parts:
        if isinstance(part, RecsysError):
            raise part
    return MetricSums.total(part for part in parts if isinstance(part, MetricSums))


def _sum_over_workers(device: torch.device, *values: float) -> list[float]:
    if not _is_group():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    result: list[float] = sums.tolist()
    return result


def _is_group() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
