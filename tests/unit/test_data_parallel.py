"""Workers of a gloo group: gradients equal those of one process, and an error on one worker ends all."""

import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import StageError
from tests.factories import make_prepared_set
from tests.unit.test_neumf import B, batch, gradients, make

RECIPE = parse_recipe({"model": {"embedding_dim": 4, "mlp_layers": [4]}, "train": {"epochs": 1}}, "test")
SHARDS = {
    1: [slice(0, B)],
    2: [slice(0, 3), slice(3, B)],
    3: [slice(0, 0), slice(0, 7), slice(7, B)],  # an empty shard, and uneven ones
}


def run_group(work: Callable[..., None], size: int, directory: Path) -> None:
    """Runs `work(rank, size, directory)` in a gloo group; fails if a worker waits for another for ever."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload([work.__module__])  # imports torch once instead of once a worker
    workers = [server.Process(target=_join, args=(work, rank, size, directory), daemon=True) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(180)
        alive = worker.is_alive()
        worker.kill()
        assert not alive, "a worker waits for another one"


def _join(work: Callable[..., None], rank: int, size: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/group", rank=rank, world_size=size)
    work(rank, size, directory)
    dist.destroy_process_group()


def _save_gradients(rank: int, size: int, directory: Path) -> None:
    model = make(RECIPE.train.model_copy(update={"l2": 0.1}), gmf_loss_weight=0.3)
    wrapped = data_parallel(model)  # kept: DDP reduces nothing once its module is gone
    torch.autograd.backward(wrapped(batch(part=SHARDS[size][rank])))
    torch.save({name: p.grad for name, p in model.named_parameters()}, directory / f"gradients-{rank}.pt")


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_of_workers_equal_those_of_one_process(tmp_path: Path, size: int) -> None:
    expected = gradients(RECIPE.train.model_copy(update={"l2": 0.1}), [slice(0, B)])
    run_group(_save_gradients, size, tmp_path)
    for rank in range(size):
        found: dict[str, Any] = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=f"{name} on worker {rank}")


def _save_weights(rank: int, size: int, directory: Path) -> None:
    torch.save(_train(PreparedSet.open(directory / "data"), rank, size), directory / f"weights-{rank}.pt")


def _train(prepared: PreparedSet, rank: int, size: int) -> dict[str, Any]:
    recipe = parse_recipe(
        {"model": {"embedding_dim": 4, "mlp_layers": [4]}, "train": {"epochs": 2, "batch_size": 50}}, "test"
    )
    build = MODELS["neumf"].build
    assert build is not None
    trainer = Trainer(build(prepared, recipe), recipe.train, wrap=data_parallel)
    feed = local_feed(prepared, recipe, rank=rank, world_size=size)
    validation = Validation.read(prepared, recipe, rank=rank, world_size=size)
    train_epochs(trainer, feed, validation, recipe.seed, lambda *_: None)
    return trainer.model.state_dict()


def test_workers_end_with_the_same_weights_and_close_to_those_of_one_process(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data")
    run_group(_save_weights, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The workers' batches hold other positives than those of one process: the epochs are alike, not equal.
    alone = _train(prepared, 0, 1)
    changes = [np.abs((first[name] - alone[name]).numpy()).max() for name in ("item_gmf", "item_mlp")]
    assert max(changes) < 0.05


class NoBatches:
    """An epoch whose loss is 0, whatever the weights are."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:  # noqa: ARG002
        return iter(())


def _train_on_single_positives(rank: int, size: int, directory: Path) -> None:
    prepared = make_prepared_set(directory / f"data-{rank}", num_users=7, num_partitions=2)
    recipe = RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"batch_size": 1})})
    build = MODELS["neumf"].build
    assert build is not None
    trainer = Trainer(build(prepared, recipe), recipe.train, wrap=data_parallel)
    feed = local_feed(prepared, recipe, rank=rank, world_size=size)
    validation = Validation.read(prepared, recipe, rank=rank, world_size=size)
    losses: list[float] = []
    train_epochs(trainer, feed, validation, 1, lambda record, _: losses.append(record.loss))
    (directory / f"loss-{rank}").write_text(str(losses), encoding="utf8")


def test_a_global_batch_smaller_than_the_number_of_workers_trains(tmp_path: Path) -> None:
    run_group(_train_on_single_positives, 3, tmp_path)
    losses = [(tmp_path / f"loss-{rank}").read_text(encoding="utf8") for rank in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert 0.3 < float(losses[0].strip("[]")) < 3


def _diverge_on_one_worker(rank: int, size: int, directory: Path) -> None:
    prepared = PreparedSet.open(directory / "data")
    build = MODELS["neumf"].build
    assert build is not None
    trainer = Trainer(build(prepared, RECIPE), RECIPE.train, wrap=data_parallel)
    whole = local_feed(
        prepared, RECIPE.model_copy(update={"train": RECIPE.train.model_copy(update={"batch_size": 50})})
    )

    class Feed:
        def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            for step, part in enumerate(whole.batches(epoch, first_step)):
                if (rank, step) == (size - 1, 3):
                    part.weight[0] = np.nan
                yield part

    try:
        train_epochs(trainer, Feed(), Validation([], 256, 1, has_ratings=False), 1, lambda *_: None)
    except StageError as error:
        (directory / f"error-{rank}").write_text(str(error), encoding="utf8")


def test_divergence_on_one_worker_ends_all_and_names_the_step(tmp_path: Path) -> None:
    make_prepared_set(tmp_path / "data")
    run_group(_diverge_on_one_worker, 2, tmp_path)
    errors = [(tmp_path / f"error-{rank}").read_text(encoding="utf8") for rank in range(2)]
    assert errors[0] == errors[1]
    assert "epoch 1, step 4 (step 4 of the run)" in errors[0]


def _fail_in_validation(rank: int, size: int, directory: Path) -> None:  # noqa: ARG001
    prepared = PreparedSet.open(directory / "data")
    build = MODELS["neumf"].build
    assert build is not None
    trainer = Trainer(build(prepared, RECIPE), RECIPE.train)
    with torch.no_grad():
        trainer.model.get_parameter("item_bias").fill_(float("nan"))
    validation = Validation.read(prepared, RECIPE) if rank == 0 else Validation([], 256, 1, has_ratings=False)
    try:
        train_epochs(trainer, NoBatches(), validation, 1, lambda *_: None)
    except StageError as error:
        (directory / f"error-{rank}").write_text(str(error), encoding="utf8")


def test_a_score_that_is_not_finite_on_one_worker_ends_both(tmp_path: Path) -> None:
    make_prepared_set(tmp_path / "data")
    run_group(_fail_in_validation, 2, tmp_path)
    errors = [(tmp_path / f"error-{rank}").read_text(encoding="utf8") for rank in range(2)]
    assert errors[0] == errors[1]
    assert "score is nan" in errors[0]
