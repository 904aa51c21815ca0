"""What does not fit on the cluster is refused before it starts, unless nodes start on demand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.distributed import resources
from ray_recsys.distributed.resources import FeedResources, require_cpu, require_workers
from ray_recsys.distributed.trial import worker_resources
from ray_recsys.distributed.trial_room import NoTrialRoom, require_trial_room
from ray_recsys.errors import ClusterError, StageError
from ray_recsys.progress import Event
from ray_recsys.storage.location import Location


class FakeRay:
    """Nodes by their resources, and what is free at each question."""

    def __init__(self, *nodes: dict[str, float], free: list[dict[str, float]] | None = None) -> None:
        self._nodes = nodes
        self._free = iter(free) if free is not None else None

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
        return [*({"Alive": True, "Resources": node} for node in self._nodes), dead]

    def cluster_resources(self) -> dict[str, float]:
        return {name: sum(node.get(name, 0.0) for node in self._nodes) for name in ("CPU", "GPU")}

    def available_resources(self) -> dict[str, float]:
        return self.cluster_resources() if self._free is None else next(self._free)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_WAIT_S", 0.0)


def on(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> None:
    monkeypatch.setattr(resources, "ray", fake)


def test_a_full_cluster_is_refused_with_what_is_free_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, FakeRay({"CPU": 4.0}, free=[{"CPU": 0.5}]))
    with pytest.raises(ClusterError) as refused:
        require_cpu("evaluate", ClusterRecipe())
    assert refused.value.message == "evaluate needs 1 CPU, but the cluster has free 0.5 of 4"
    assert refused.value.remedy.endswith("set cluster.wait_for_nodes")


def test_where_nodes_start_on_demand_they_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, FakeRay({"CPU": 4.0}, free=[{"CPU": 0.5}]))
    lines: list[Event] = []
    require_cpu("tune", ClusterRecipe(wait_for_nodes=True), report=lines.append)
    assert lines == ["waiting for nodes: tune needs 1 CPU, but the cluster has free 0.5 of 4"]


def test_a_cpu_that_is_being_released_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "_WAIT_S", 5.0)
    fake = FakeRay({"CPU": 4.0}, free=[{}, {"CPU": 0.0}, {"CPU": 1.0}])
    on(monkeypatch, fake)
    require_cpu("prepare", ClusterRecipe())
    with pytest.raises(StopIteration):
        fake.available_resources()


@pytest.mark.parametrize(
    ("nodes", "cluster", "expected"),
    [
        ([{"CPU": 4.0}], ClusterRecipe(), FeedResources("worker", 0.5, 3)),  # 2 workers: 1.5 CPUs beside each
        ([{"CPU": 1.5}], ClusterRecipe(), FeedResources("worker", 0.25, 1)),
        ([{"CPU": 4.0}], ClusterRecipe(placement="task"), FeedResources("task", 1.0, 1)),
        ([{"CPU": 8.0, "GPU": 2}], ClusterRecipe(use_gpu=True), FeedResources("worker", 0.5, 7)),
        ([{"CPU": 2.0, "GPU": 2}, {"CPU": 16.0}], ClusterRecipe(use_gpu=True), FeedResources("task", 1.0, 8)),
        (  # a head without CPUs, and nodes that start on demand
            [{"CPU": 0.0}],
            ClusterRecipe(use_gpu=True, wait_for_nodes=True),
            FeedResources("task", 1.0, 2),
        ),
        ([{"CPU": 0.0}], ClusterRecipe(wait_for_nodes=True), FeedResources("worker", 0.25, 1)),
    ],
)
def test_what_the_feed_of_a_worker_may_use(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], cluster: ClusterRecipe, expected: FeedResources
) -> None:
    on(monkeypatch, FakeRay(*nodes))
    assert require_workers(cluster) == expected


@pytest.mark.parametrize(
    ("fake", "cluster", "message", "remedy"),
    [
        (
            FakeRay({"CPU": 4.0}),
            ClusterRecipe(num_workers=6),
            "need 4.5 CPUs .* cluster has 4: 0.5 missing",
            "cpus_per",
        ),
        (
            FakeRay({"CPU": 4.0}),
            ClusterRecipe(use_gpu=True),
            r"need 2 GPUs \(one each\).* has 0",
            "cluster.num_workers,",
        ),
        (
            FakeRay({"CPU": 4.0}, free=[{"CPU": 1.0}]),
            ClusterRecipe(),
            "need 1.5 CPUs .* has free 1: 0.5 missing",
            "other jobs to end",
        ),
        (
            FakeRay({"CPU": 3.0}, {"CPU": 3.0}),
            ClusterRecipe(cpus_per_worker=2.0, num_workers=2, use_gpu=False),
            None,
            None,
        ),
        (
            FakeRay({"CPU": 3.0}, {"CPU": 3.0}),
            ClusterRecipe(cpus_per_worker=1.6, num_workers=3),
            "hold 2: a worker cannot span nodes",
            "lower cluster.num_workers or",
        ),
        (
            FakeRay({"CPU": 1.0, "GPU": 2}, {"CPU": 9.0}),
            ClusterRecipe(cpus_per_worker=1.0, num_workers=2, use_gpu=True),
            "of 1 CPUs and a GPU do not fit .* hold 1",
            "add nodes",
        ),
    ],
)
def test_workers_that_do_not_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, fake: FakeRay, cluster: ClusterRecipe, message: str | None, remedy: str | None
) -> None:
    on(monkeypatch, fake)
    if message is None:
        require_workers(cluster)
        return
    with pytest.raises(ClusterError, match=message) as refused:
        require_workers(cluster)
    assert remedy is not None
    assert remedy in refused.value.remedy


def test_workers_wait_for_nodes_that_start_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, FakeRay({"CPU": 0.0}))
    lines: list[Event] = []
    require_workers(ClusterRecipe(wait_for_nodes=True), report=lines.append)
    (line,) = lines
    assert str(line).startswith("waiting for nodes: 2 train workers need 1.5 CPUs")
    assert "set cluster.wait_for_nodes" not in str(line)  # it is set


@given(
    cpus=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    num_workers=st.integers(1, 20),
    cpus_per_worker=st.sampled_from([0.25, 0.5, 1.0, 1.7, 4.0]),
    placement=st.sampled_from(["worker", "task"]),
)
def test_workers_and_their_feeds_never_ask_for_more_than_there_is(
    cpus: list[int], num_workers: int, cpus_per_worker: float, placement: str
) -> None:
    recipe = ClusterRecipe.model_validate(
        {"num_workers": num_workers, "cpus_per_worker": cpus_per_worker, "placement": placement}
    )
    with pytest.MonkeyPatch.context() as patch:
        on(patch, FakeRay(*({"CPU": float(count)} for count in cpus)))
        try:
            feed = require_workers(recipe)
        except ClusterError:
            return
    asked = num_workers * (cpus_per_worker + feed.num_tasks * feed.task_cpus)
    assert feed.num_tasks >= 1
    assert 0.25 <= feed.task_cpus <= 1.0
    assert asked <= sum(cpus) + 1e-6


def search(workers: int, **cluster: Any) -> Recipe:
    return parse_recipe({"tune": {"workers_per_trial": workers}, "cluster": cluster}, "test")


def test_a_trial_reserves_what_training_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_resources(search(1)) == {"CPU": 1.0}
    assert worker_resources(search(1, cpus_per_worker=3.5, use_gpu=True)) == {"CPU": 4.0, "GPU": 1.0}
    on(monkeypatch, FakeRay({"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0, "GPU": 1.0}))
    require_trial_room(search(2, use_gpu=True), lambda _: None)
    with pytest.raises(
        ClusterError, match=r"needs 3 workers with 1 CPUs and 1 GPUs each, but the cluster's nodes hold 2"
    ):
        require_trial_room(search(3, use_gpu=True), lambda _: None)
    events: list[Event] = []
    require_trial_room(search(3, use_gpu=True, wait_for_nodes=True), events.append)
    assert "waiting for nodes" in str(events[0])


def test_a_search_without_room_ends_in_time_and_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr("ray_recsys.distributed.trial_room.time.monotonic", lambda: clock)
    whole, lost = FakeRay({"CPU": 2.0}, {"CPU": 2.0}), FakeRay({"CPU": 2.0})
    stopper, patient = (
        NoTrialRoom(search(3, start_timeout_s=60, wait_for_nodes=waits), Location.of("/runs/search"))
        for waits in (False, True)
    )
    on(monkeypatch, lost)
    for _ in range(50):  # found again in time
        clock += 1
        assert not stopper.stop_all()
    on(monkeypatch, whole)
    clock += 1
    assert not stopper.stop_all()
    on(monkeypatch, lost)
    for _ in range(60):
        clock += 1
        assert not stopper.stop_all()
    clock += 1
    with pytest.raises(StageError, match=r"3 workers, 1 CPUs each, .*waited 60 s.*--resume --output /runs/search"):
        stopper.stop_all()
    assert not any(patient.stop_all() for _ in range(3))
