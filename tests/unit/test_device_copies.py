"""Copies ahead of the step, with streams and events that only write down what they are asked."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ray_recsys.core.models.contract import TensorBatch
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training import device_copies
from ray_recsys.core.training.device_copies import copied_ahead, to_tensors

CPU = torch.device("cpu")


def batch(first_user: int) -> Batch:
    users = np.arange(first_user, first_user + 3)
    items = np.arange(6, dtype=np.int32).reshape(3, 2)
    return Batch(users, items, np.ones(3, np.float32), None, 3, np.zeros((3, 4), np.int32))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a GPU would have been asked, in order."""
    asked: list[str] = []

    class Stream:
        def __init__(self, _: torch.device) -> None:
            self.num_events = 0

        def record_event(self) -> int:
            self.num_events += 1
            asked.append(f"copied {self.num_events}")
            return self.num_events

    class Current:
        def wait_event(self, number: int) -> None:
            asked.append(f"wait for {number}")

    @contextmanager
    def on_stream(_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", on_stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Current)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: asked.append("kept"))
    monkeypatch.setattr(device_copies, "to_tensors", lambda batch, _: to_tensors(batch, CPU))
    return asked


@pytest.mark.parametrize("num_batches", [0, 1, 4])
def test_every_batch_arrives_in_order_and_the_next_is_copied_before(asked: list[str], num_batches: int) -> None:
    batches = [batch(10 * number) for number in range(num_batches)]
    arrived = []
    for number, copy in enumerate(copied_ahead(batches, torch.device("cuda")), start=1):
        arrived.append(copy)
        asked.append(f"step {number}")
    assert [copy.user_idx.tolist() for copy in arrived] == [theirs.user_idx.tolist() for theirs in batches]
    events = [line for line in asked if line != "kept"]
    assert asked.count("kept") == 4 * num_batches  # users, items, weights and recent items; there are no ratings
    for number in range(1, num_batches + 1):
        assert events.index(f"copied {number}") < events.index(f"wait for {number}") < events.index(f"step {number}")
        if number < num_batches:
            assert events.index(f"copied {number + 1}") < events.index(f"step {number}")


def test_batches_that_are_on_the_device_are_passed_on(asked: list[str]) -> None:
    made: list[Batch | TensorBatch] = [to_tensors(batch(n), CPU) for n in (0, 5)]
    assert list(copied_ahead(made, torch.device("cuda"))) == made
    assert not asked


def test_nothing_is_copied_on_a_cpu() -> None:
    theirs = batch(3)
    mine = to_tensors(theirs, CPU)
    assert mine.user_idx.numpy().base is theirs.user_idx or np.shares_memory(mine.user_idx.numpy(), theirs.user_idx)
    assert (mine.rating, mine.global_batch_size, mine.num_pairs) == (None, 3, theirs.num_pairs)
