import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import ray.train
import ray.train.torch

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.distributed.feed import PartitionConfig, PartitionStream, make_feed, stream_epochs, worker_feed
from ray_recsys.distributed.feed_resources import FeedResources, check_resources
from ray_recsys.errors import ClusterError
from ray_recsys.progress import Event
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("feed") / "prepared", num_users=90, num_partitions=5)


def recipe_of(*overrides: str) -> Recipe:
    return load_recipe(None, ["train.batch_size=64", "train.epochs=2", *overrides])


def epochs_of(prepared: PreparedSet, recipe: Recipe, placement: Literal["worker", "task"]) -> Iterator[list[Batch]]:
    num_users = {p: info.num_users for p, info in enumerate(prepared.manifest.partitions)}
    stream = PartitionStream(prepared.path, num_users, FeedResources(placement, 0.5, 1))
    epochs = stream_epochs(prepared, recipe, stream, rank=0, world_size=2)
    for epoch in (1, 2):
        yield list(epochs.batches(epoch))
    epochs.close()


def as_bytes(batches: list[Batch]) -> bytes:
    fields = [dataclasses.astuple(batch) for batch in batches]
    return b"".join(np.asarray(value).tobytes() for values in fields for value in values if value is not None)


@pytest.mark.parametrize("window_interactions", [200, 10**6])
def test_both_placements_give_the_same_bytes(prepared: PreparedSet, window_interactions: int) -> None:
    recipe = recipe_of(f"feed.window_interactions={window_interactions}", "feed.recency_half_life=3")
    in_worker, in_task = ([*map(as_bytes, epochs_of(prepared, recipe, placement))] for placement in ("worker", "task"))
    assert in_worker == in_task
    assert in_worker[0] != in_worker[1]


def _count(config: dict[Any, Any]) -> Any:
    prepared = PreparedSet.open(Path(config["data"]))
    recipe = recipe_of()
    context = ray.train.get_context()
    feed = worker_feed(prepared, recipe, rank=context.get_world_rank(), world_size=context.get_world_size())
    pairs = [b.user_idx * 1000 + b.item_idx[:, 0] for epoch in (1, 2) for b in feed.batches(epoch)]
    feed.close()
    return [feed.num_steps, *np.concatenate(pairs).tolist()]


def test_trainer_feeds_every_worker(prepared: PreparedSet) -> None:
    feed = make_feed(prepared, recipe_of("cluster.num_workers=1"))
    trainer = ray.train.torch.TorchTrainer(
        _count,
        train_loop_config={"data": str(prepared.path)},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        datasets={**feed.datasets},
        dataset_config=feed.data_config,
    )
    num_steps, *pairs = getattr(trainer.fit(), "return_value")  # noqa: B009 - Ray's types lack it
    assert num_steps == -(-prepared.manifest.num_training // 64)
    histories = [prepared.read_partition(p) for p in range(5)]
    expected = np.concatenate([h.user_idx[h.training.rows()] * 1000 + h.training.item_idx for h in histories])
    np.testing.assert_array_equal(np.sort(pairs), np.sort(np.tile(expected, 2)))


def test_each_worker_gets_its_stream(prepared: PreparedSet) -> None:
    feed = make_feed(prepared, recipe_of())
    config = PartitionConfig(prepared.path, feed.resources)
    shards = config.configure(feed.datasets, world_size=3)
    assert [shard["train"].num_users[4] for shard in shards] == [18, 18, 18]


def test_too_large_a_request_fails_at_once() -> None:
    start_s = time.monotonic()
    with pytest.raises(ClusterError, match=r"4 train workers need 5 CPUs .* the cluster has 4: 1 missing"):
        check_resources(recipe_of("cluster.cpus_per_worker=1", "cluster.num_workers=4").cluster)
    with pytest.raises(ClusterError, match=r"need 1 GPUs .* has 0"):
        check_resources(recipe_of("cluster.use_gpu=true", "cluster.num_workers=1").cluster)
    assert time.monotonic() - start_s < 1


def test_nodes_that_start_on_demand_are_waited_for() -> None:
    lines: list[Event] = []
    recipe = recipe_of("cluster.cpus_per_worker=8", "cluster.wait_for_nodes=true", "cluster.placement='task'")
    assert check_resources(recipe.cluster, report=lines.append) == FeedResources("task", 0.25, 1)
    assert [line.partition(" (")[0] for line in lines] == ["waiting for nodes: 2 train workers need 16.5 CPUs"]


def test_full_cluster_fails_soon() -> None:
    class Hog:
        def ready(self) -> bool:
            return True

    hog: Any = ray.remote(num_cpus=3.5)(Hog).remote()
    assert ray.get(hog.ready.remote())
    start_s = time.monotonic()
    with pytest.raises(ClusterError, match=r"need 1.5 CPUs .* has free 0.5: 1 missing"):
        check_resources(recipe_of("cluster.cpus_per_worker=0.5").cluster)
    ray.kill(hog)
    assert time.monotonic() - start_s < 5
