"""Fixtures that every tier shares."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from ray_recsys.distributed.cluster import connect

settings.register_profile("project", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("project")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for the whole test session; 4 logical CPUs so that trainers and Ray Data fit beside each other."""
    with connect("local", num_cpus=4):
        yield


@pytest.fixture
def serial_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `prepare` run its tasks here, in an order that Ray would not choose, instead of on a cluster."""
    from ray_recsys.distributed import prepare, prepare_passes

    def run_tasks(task: Callable[[int], object], num_tasks: int, *, stage: str) -> Iterator[object]:  # noqa: ARG001
        for number in reversed(range(num_tasks)):
            yield task(number)

    monkeypatch.setattr(prepare_passes, "run_tasks", run_tasks)
    monkeypatch.setattr(prepare, "require_cpu", lambda *_, **__: None)
