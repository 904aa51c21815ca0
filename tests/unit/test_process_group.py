"""The workers' process group and what a training process sets, without Ray."""

import multiprocessing
import os
import socket
from typing import Any

import pytest
import torch

from ray_recsys.core.training.process import prepare_process
from ray_recsys.distributed.process_group import TorchGroup, _join, _leave


def _sum_in_group(url: str, rank: int, size: int, sums: Any) -> None:
    _join("gloo", url, rank, size)
    value = torch.tensor([float(rank + 1)])
    torch.distributed.all_reduce(value)
    sums[rank] = value.item()
    _leave()
    _leave()  # a worker that has left may be asked again
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("size", [1, 2])
def test_workers_that_joined_add_up_and_leave(size: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    context = multiprocessing.get_context("spawn")
    sums = context.Array("d", size)
    workers = [context.Process(target=_sum_in_group, args=(url, rank, size, sums)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * size
    assert sums[:] == [size * (size + 1) / 2] * size


class FakeWorkers:
    """A worker group that records what each rank is told to run."""

    def __init__(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._host = host
        monkeypatch.setattr("ray.get", lambda refs: refs)

    def __len__(self) -> int:
        return 3

    def execute_single(self, _: int, __: object) -> tuple[str, int]:
        return self._host, 4321

    def execute_single_async(self, rank: int, function: object, *args: Any) -> None:
        self.calls.append((rank, function, *args))


@pytest.mark.parametrize(("host", "url"), [("10.0.0.7", "tcp://10.0.0.7:4321"), ("fd00::7", "tcp://[fd00::7]:4321")])
@pytest.mark.parametrize(("use_gpu", "backend"), [(False, "gloo"), (True, "nccl")])
def test_each_worker_is_told_its_rank_and_where_the_first_one_listens(
    monkeypatch: pytest.MonkeyPatch, host: str, url: str, use_gpu: bool, backend: str
) -> None:
    config, workers = TorchGroup(use_gpu), FakeWorkers(host, monkeypatch)
    config.backend_cls().on_start(workers, config)  # type: ignore[arg-type]
    assert workers.calls == [(rank, _join, backend, url, rank, 3) for rank in range(3)]


def _prepared(found: Any) -> None:
    prepare_process(1)
    tiny = torch.full((1,), 1e-40) * torch.ones(1)
    found[0], found[1] = torch.get_num_threads(), float(tiny.item())


def test_a_training_process_has_its_threads_and_no_denormal_numbers() -> None:
    context = multiprocessing.get_context("spawn")  # not in this process: it stays so
    found = context.Array("d", [-1.0, -1.0])
    process = context.Process(target=_prepared, args=(found,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert found[:] == [1.0, 0.0]
    assert os.getpid() != process.pid
