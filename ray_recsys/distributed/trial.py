"""One trial of a search, in its own process: the epochs of a train worker, reported to Ray Tune.

With several workers a trial trains data-parallel: its process is the first worker, and the others are tasks in the
trial's placement group, so that nothing is left behind when the scheduler removes it. (Ray Train's own groups would be
left, without a dashboard.)
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune as ray_tune
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from torch._C._distributed_c10d import TCPStore

from ray_recsys.config import Recipe
from ray_recsys.config.files import with_values
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.process import prepare_process
from ray_recsys.core.training.trainer import Trainer, deciding_metric
from ray_recsys.core.training.user_shares import split_users
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import RecsysError
from ray_recsys.storage.location import LocationLike

NUM_EPOCHS, BEST_EPOCH, ERROR = "num_epochs", "best_epoch", "error"
"""Names in a trial's reports besides those of metrics."""


def worker_resources(recipe: Recipe) -> dict[str, float]:
    """Returns a trial worker's resources: whole CPUs, since it feeds itself, and a GPU where `train` does."""
    cpus = max(1.0, math.ceil(recipe.cluster.cpus_per_worker))
    return {"CPU": cpus} | ({"GPU": 1.0} if recipe.cluster.use_gpu else {})


def trial_resources(recipe: Recipe) -> ray_tune.PlacementGroupFactory:
    """Returns the resources of a trial: a bundle for each worker, the first for the trial's own process."""
    return ray_tune.PlacementGroupFactory([worker_resources(recipe)] * recipe.tune.workers_per_trial)


def run_trial(config: dict[str, Any], *, data: LocationLike, recipe: Recipe) -> None:
    """Trains one recipe and reports its best validation after each epoch to Tune.

    An error that would come again, such as a loss that is not finite, is reported as the trial's result: Tune retries
    only what was lost.
    """
    try:
        chosen = with_values(recipe, config)
        if MODELS[chosen.model.name].fit is not None:
            _fit(chosen, data)
            return
        with _other_workers(chosen, data) as address:
            _train(chosen, data, 0, address, is_reporting=True)
    except RecsysError as error:
        metric = deciding_metric(recipe.train)
        ray_tune.report({metric.label: _worst(recipe), NUM_EPOCHS: 0, BEST_EPOCH: 0, ERROR: str(error)})


def _worst(recipe: Recipe) -> float:
    return math.inf if deciding_metric(recipe.train).is_error else 0.0


def _fit(recipe: Recipe, data: LocationLike) -> None:
    """Fits a model without epochs: a trial of one report."""
    _set_threads(recipe)
    prepared, fit = PreparedSet.open(data), MODELS[recipe.model.name].fit
    assert fit is not None
    sums = Validation.read(prepared, recipe).measure(fit(prepared, recipe, SerialExecutor()))
    ray_tune.report({**sums.means(), NUM_EPOCHS: 0, BEST_EPOCH: 0})


@contextmanager
def _other_workers(recipe: Recipe, data: LocationLike) -> Iterator[str]:
    """Starts a trial's other workers; yields the rendezvous address."""
    size = recipe.tune.workers_per_trial
    if size == 1:
        yield ""
        return
    store = TCPStore(ray.util.get_node_ip_address(), 0, is_master=True, wait_for_workers=False)
    address, resources = f"{store.host}:{store.port}", worker_resources(recipe)
    task: Any = ray.remote(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=0)(_train)  # type: ignore[arg-type]  # its overloads have no keyword arguments
    group = ray.util.get_current_placement_group()
    assert group is not None
    others = [
        task.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, rank)).remote(
            recipe, data, rank, address, is_reporting=False
        )
        for rank in range(1, size)
    ]
    yield address
    ray.get(others)


def _train(recipe: Recipe, data: LocationLike, rank: int, address: str, *, is_reporting: bool) -> None:
    """Trains as one worker of a trial.

    Args:
        recipe: The trial's.
        data: The prepared set.
        rank: Of this worker.
        address: Of the store at which the workers meet; empty for a worker alone.
        is_reporting: Whether it reports to Tune.
    """
    size = recipe.tune.workers_per_trial
    _set_threads(recipe)
    with _process_group(rank, size, address, use_gpu=recipe.cluster.use_gpu):
        prepared = PreparedSet.open(data)
        shares, users = split_users(prepared, recipe, rank=rank, world_size=size)
        validation = Validation.read(prepared, recipe, rank=rank, world_size=size, users=users)
        build = MODELS[recipe.model.name].build
        assert build is not None
        feed = local_feed(prepared, recipe, rank=rank, world_size=size, shares=shares)
        trainer = Trainer(
            build(prepared, recipe, users),
            recipe.train,
            steps_per_epoch=feed.plan.num_steps,
            device=torch.device("cuda" if recipe.cluster.use_gpu else "cpu"),
            wrap=data_parallel,
            users=users,
        )

        def tell(*_: object) -> None:
            progress = trainer.progress
            metrics = {trainer.metric.label: _worst(recipe)} | progress.best_metrics
            if is_reporting:
                ray_tune.report({**metrics, NUM_EPOCHS: progress.num_epochs, BEST_EPOCH: progress.best_epoch})

        try:
            train_epochs(trainer, feed, validation, recipe.seed, tell)
        finally:
            feed.close()


@contextmanager
def _process_group(rank: int, size: int, address: str, *, use_gpu: bool) -> Iterator[None]:
    if size == 1:
        yield
        return
    host, _, port = address.rpartition(":")
    store = TCPStore(host, int(port), is_master=False)
    dist.init_process_group("nccl" if use_gpu else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _set_threads(recipe: Recipe) -> None:
    """Gives a worker as many threads as it reserves CPUs, unless the recipe says otherwise."""
    prepare_process(recipe.cluster.threads_per_worker or int(worker_resources(recipe)["CPU"]))
