"""The epoch stream through Ray Data: alone, and in the workers of Ray Train."""

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
import ray
import ray.train
import ray.train.torch

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.arrays import Int64s
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.distributed.feed import _regroup, worker_feed
from ray_recsys.distributed.resources import FeedResources, require_workers
from ray_recsys.errors import ClusterError
from ray_recsys.progress import Event
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
Placement = Literal["worker", "task"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("feed") / "prepared", num_users=90, num_partitions=5)


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(None, ["train.batch_size=64", "train.epochs=2", *overrides])


def epochs_of(
    prepared: PreparedSet, recipe: Recipe, placement: Placement, rank: int = 0, world_size: int = 2
) -> Iterator[list[Batch]]:
    resources = FeedResources(placement, 0.5, 1)
    epochs = worker_feed(prepared, recipe, resources, rank=rank, world_size=world_size)
    for epoch in (1, 2):
        yield list(epochs.batches(epoch))
    epochs.close()


def positives_of(batches: list[Batch]) -> Int64s:
    pairs: Int64s = np.concatenate([batch.user_idx * 1000 + batch.item_idx[:, 0] for batch in batches])
    return pairs


def as_bytes(batches: list[Batch]) -> bytes:
    fields = [dataclasses.astuple(batch) for batch in batches]
    return b"".join(np.asarray(value).tobytes() for values in fields for value in values if value is not None)


@pytest.mark.parametrize("window_interactions", [200, 10**6])
def test_both_placements_give_the_bytes_of_a_process_without_ray(
    prepared: PreparedSet, window_interactions: int
) -> None:
    recipe = recipe_of(f"feed.window_interactions={window_interactions}", "feed.recency_half_life=3")
    alone = local_feed(prepared, recipe, rank=0, world_size=2)
    expected = [as_bytes(list(alone.batches(epoch))) for epoch in (1, 2)]
    for placement in ("worker", "task"):
        assert [*map(as_bytes, epochs_of(prepared, recipe, placement))] == expected
    assert expected[0] != expected[1]


@pytest.mark.parametrize("placement", ["worker", "task"])
def test_a_worker_without_positives_gets_empty_batches(prepared: PreparedSet, placement: Placement) -> None:
    small = make_prepared_set(prepared.path.parent / f"small-{placement}", num_users=1, num_partitions=2)
    for rank, size in ((0, 0), (1, 1)):
        first, _ = epochs_of(small, recipe_of(), placement, rank, world_size=small.manifest.num_training + 1)
        assert [batch.item_idx.shape for batch in first] == [(size, 5)]


def _record_stream(config: dict[Any, Any]) -> None:
    """What a train worker does with its feed, into a file of its own."""
    prepared = PreparedSet.open(Path(config["data"]))
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    resources = FeedResources(**config["resources"])
    feed = worker_feed(prepared, recipe_of(), resources, rank=rank, world_size=world_size)
    epochs = [[positives_of([batch]).tolist() for batch in feed.batches(epoch)] for epoch in (1, 2)]
    feed.close()
    (Path(config["output"]) / f"{rank}.json").write_text(json.dumps(epochs))


def test_train_workers_get_different_streams_that_cover_every_positive_once(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    resources = dataclasses.asdict(require_workers(recipe_of("cluster.num_workers=2").cluster))
    config = {"data": str(prepared.path), "resources": resources, "output": str(tmp_path)}
    ray.train.torch.TorchTrainer(
        _record_stream,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
    ).fit()
    workers = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    histories = [prepared.read_partition(p) for p in range(5)]
    expected = np.concatenate([h.user_idx[h.training.rows()] * 1000 + h.training.item_idx for h in histories])
    for epochs in zip(*workers, strict=True):  # of both workers
        steps = {len(batches) for batches in epochs}
        assert steps == {-(-prepared.manifest.num_training // 64)}
        mine, others = (np.concatenate([np.asarray(batch) for batch in batches]) for batches in epochs)
        assert abs(len(mine) - len(others)) <= 1
        assert not set(mine.tolist()) & set(others.tolist())
        np.testing.assert_array_equal(np.sort(np.concatenate([mine, others])), np.sort(expected))


def test_tables_are_regrouped_from_blocks_that_were_cut_anywhere() -> None:
    rows = pa.table({"row": range(20)})
    blocks = [rows.slice(start, size) for start, size in ((0, 1), (1, 0), (1, 11), (12, 3), (15, 5))]
    sizes = [4, 0, 9, 1, 6]
    tables = list(_regroup(iter(blocks), sizes))
    assert [len(table) for table in tables] == sizes
    assert [value for table in tables if len(table) for value in table["row"].to_pylist()] == list(range(20))


def test_too_large_a_request_fails_at_once() -> None:
    start_s = time.monotonic()
    with pytest.raises(ClusterError, match=r"4 train workers need 5 CPUs .* the cluster has 4: 1 missing"):
        require_workers(recipe_of("cluster.cpus_per_worker=1", "cluster.num_workers=4").cluster)
    with pytest.raises(ClusterError, match=r"need 1 GPUs .* has 0"):
        require_workers(recipe_of("cluster.use_gpu=true", "cluster.num_workers=1").cluster)
    assert time.monotonic() - start_s < 1


def test_nodes_that_start_on_demand_are_waited_for() -> None:
    lines: list[Event] = []
    recipe = recipe_of("cluster.cpus_per_worker=8", "cluster.wait_for_nodes=true", "cluster.placement='task'")
    assert require_workers(recipe.cluster, report=lines.append) == FeedResources("task", 1.0, 2)
    assert [str(line).partition(" (")[0] for line in lines] == ["waiting for nodes: 2 train workers need 16.5 CPUs"]


def test_full_cluster_fails_soon() -> None:
    class Hog:
        def ready(self) -> bool:
            return True

    hog: Any = ray.remote(num_cpus=3.5)(Hog).remote()
    assert ray.get(hog.ready.remote())
    start_s = time.monotonic()
    with pytest.raises(ClusterError, match=r"need 1.5 CPUs .* has free 0.5: 1 missing"):
        require_workers(recipe_of("cluster.cpus_per_worker=0.5").cluster)
    ray.kill(hog)
    assert time.monotonic() - start_s < 5
