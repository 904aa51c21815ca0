"""Batches on their way from the host to a GPU: pinned, and copied while the step before runs."""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_recsys.core.models.contract import TensorBatch
from ray_recsys.core.sampling.epoch_stream import Batch


def to_tensors(batch: Batch, device: torch.device) -> TensorBatch:
    """Returns a batch on a device."""

    def tensor(array: npt.NDArray[np.generic]) -> Tensor:
        host = torch.from_numpy(array)
        return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host

    return TensorBatch(
        tensor(batch.user_idx),
        tensor(batch.item_idx),
        tensor(batch.weight),
        None if batch.rating is None else tensor(batch.rating),
        batch.global_batch_size,
        None if batch.recent is None else tensor(batch.recent),
    )


def copied_ahead(batches: Iterable[Batch | TensorBatch], device: torch.device) -> Iterator[TensorBatch]:
    """Yields batches on a GPU, each copied on a stream of its own while the consumer's work on the one before runs."""
    stream, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        if isinstance(batch, TensorBatch):
            yield batch
            continue
        with torch.cuda.stream(stream):
            copy = to_tensors(batch, device), stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copy
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: TensorBatch, event: torch.cuda.Event) -> TensorBatch:
    """Makes the consumer's stream wait for a copy, and its memory wait for the consumer."""
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for tensor in (batch.user_idx, batch.item_idx, batch.weight, batch.rating, batch.recent):
        if tensor is not None:
            tensor.record_stream(current)
    return batch
