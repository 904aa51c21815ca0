"""The torch process group of Ray Train's workers: gloo between CPUs, NCCL between GPUs.

Ray's own would import torch in the controller, before it starts the workers, which then take as long again: the largest
part of a training's start-up. Here torch is imported by the workers alone, at the same time.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

_TIMEOUT_S = 1800  # of a collective, as Ray's
_LEAVE_TIMEOUT_S = 30.0


@dataclass
class TorchGroup(BackendConfig):
    """Tells Ray Train to connect its workers."""

    use_gpu: bool

    @property
    def backend_cls(self) -> type[Backend]:
        """What connects them."""
        return _TorchBackend


class _TorchBackend(Backend):
    """Runs in Ray's controller."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: TorchGroup) -> None:  # type: ignore[override]
        """Connects all workers, once their processes run."""
        host, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if backend_config.use_gpu else "gloo"
        size = len(worker_group)
        url = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
        ray.get([worker_group.execute_single_async(rank, _join, backend, url, rank, size) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, _: BackendConfig) -> None:
        """Lets all workers leave the group; one that hangs is left to Ray, which ends its process."""
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=_LEAVE_TIMEOUT_S)


def _join(backend: str, url: str, rank: int, world_size: int) -> None:
    import torch.distributed as dist

    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")  # a hanging collective ends with an error
    timeout = timedelta(seconds=_TIMEOUT_S)
    dist.init_process_group(backend, init_method=url, rank=rank, world_size=world_size, timeout=timeout)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
