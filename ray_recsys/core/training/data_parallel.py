"""Data-parallel training: gradients of the workers are added, whatever the sizes of their shards."""

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Value = TypeVar("Value")

_ONE_BUCKET_MB = 1 << 20


class GradientBucket(Protocol):
    """DDP's argument to a communication hook."""

    def buffer(self) -> Tensor:
        """Returns the gradients as one flat tensor."""
        ...


def sum_gradients(bucket: GradientBucket) -> torch.futures.Future[Tensor]:
    """Adds a bucket's gradients over workers; DDP would average, but losses are divided by the global batch already."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


def data_parallel(module: nn.Module) -> nn.Module:
    """Returns the module under DDP with summed gradients; the module itself where this process trains alone."""
    if not is_group():
        return module
    device = next(module.parameters()).device
    # One bucket: on CPU nothing overlaps with the backward pass, and each further one costs a round trip.
    wrapped = DistributedDataParallel(
        module,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        bucket_cap_mb=_ONE_BUCKET_MB,
    )
    wrapped.register_comm_hook(None, lambda _, bucket: sum_gradients(bucket))
    return wrapped


def sum_over_workers(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns the sums over workers of tensors that each worker has, sent as one."""
    if not is_group():
        return list(tensors)
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    sizes = [tensor.numel() for tensor in tensors]
    return [part.view_as(tensor) for part, tensor in zip(torch.split(flat, sizes), tensors, strict=True)]


def copy_from_first(tensors: Sequence[Tensor]) -> None:
    """Overwrites tensors by those of the first worker: processors of two kinds may have drawn them differently."""
    if is_group():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def all_gather(value: Value) -> list[Value]:
    """Returns the values of all workers, small objects, in the order of the workers; every worker must call it."""
    if not is_group():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def rank_of_process() -> int:
    """Returns this process's number in its group; 0 if it trains alone."""
    return dist.get_rank() if is_group() else 0


def is_group() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_initialized() and dist.get_world_size() > 1
