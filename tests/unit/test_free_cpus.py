"""A command that no CPU is free for says so before it starts, unless nodes may come."""

import pytest

from ray_recsys.distributed import free_cpus
from ray_recsys.distributed.free_cpus import require_cpu
from ray_recsys.errors import ClusterError
from ray_recsys.progress import Event


@pytest.fixture
def full_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_cpus, "_WAIT_S", 0.0)
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 0.5})
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})


@pytest.mark.usefixtures("full_cluster")
def test_a_full_cluster_is_refused_with_what_is_free_and_the_remedy() -> None:
    with pytest.raises(
        ClusterError, match=r"evaluate needs 1 CPU, .* free 0.5 of 4; wait .* set cluster.wait_for_nodes"
    ):
        require_cpu("evaluate", wait_for_nodes=False)
    with pytest.raises(ClusterError, match=r"audit needs 1 CPU, .* or add nodes$"):
        require_cpu("audit")


@pytest.mark.usefixtures("full_cluster")
def test_where_nodes_may_come_they_are_waited_for() -> None:
    lines: list[Event] = []
    require_cpu("tune", wait_for_nodes=True, report=lines.append)
    assert lines == ["waiting for nodes: tune needs 1 CPU, but the cluster has free 0.5 of 4"]


def test_a_cpu_that_is_just_given_back_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([0.0, 0.0, 1.0])
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": next(free)})
    require_cpu("prepare")
    assert next(free, None) is None
