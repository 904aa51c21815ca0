"""Workers of a gloo group: gradients equal those of one process, and an error on one worker ends all."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ray_recsys.config import TrainRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.models.contract import GradientModel
from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.data_parallel import data_parallel
from ray_recsys.core.training.device_copies import to_tensors
from ray_recsys.core.training.learner import SparseLearner
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import StageError
from tests.factories import make_prepared_set
from tests.unit.test_neumf import ITEMS, USERS, B, batch, gradients, make
from tests.unit.test_sparse_learner import batch_of

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

    _save_sparse_gradients(rank, size, directory)


USER_BOUNDS = {1: [0, USERS], 2: [0, 2, USERS], 3: [0, 0, 3, USERS]}  # of the workers; one may have none
SPARSE = TrainRecipe(l2=0.1, optimizer="sparse_adam")
BATCH = batch_of(USERS, ITEMS, 12, seed=5, recent=4)


def _save_sparse_gradients(rank: int, size: int, directory: Path) -> None:
    """Saves a worker's gradients, with the rows of its own users alone, and its weights after two steps."""
    first, end = USER_BOUNDS[size][rank : rank + 2]
    learner, model = make_learner(first, end)
    is_own = (BATCH.user_idx >= first) & (BATCH.user_idx < end)
    assert BATCH.recent is not None
    own = replace(
        BATCH,
        user_idx=BATCH.user_idx[is_own],
        item_idx=BATCH.item_idx[is_own],
        weight=BATCH.weight[is_own],
        recent=BATCH.recent[is_own],
    )
    found = learner.gradients(own)
    for _ in range(2):
        learner.step(own, 0.01)
    saved = {"rows": found.rows, "dense": found.dense, "weights": model.state_dict()}
    torch.save(saved, directory / f"sparse-{rank}.pt")


def make_learner(first: int, end: int) -> tuple[SparseLearner, GradientModel]:
    model = make(SPARSE, gmf_loss_weight=0.3, recent_items=4)
    model.keep_users(range(first, end))
    return SparseLearner(model, SPARSE, range(first, end)), model


def test_sparse_gradients_of_one_process_equal_dense_ones() -> None:
    learner, model = make_learner(0, USERS)
    found = learner.gradients(BATCH)
    dense = make(SPARSE, gmf_loss_weight=0.3, recent_items=4)
    torch.autograd.backward(dense(to_tensors(BATCH, torch.device("cpu"))))
    for field, names in model.batch_tables.items():
        rows, gradients = found.rows[field]
        expected = torch.cat([_gradient(dense, name).view(len(_gradient(dense, name)), -1) for name in names], dim=1)
        torch.testing.assert_close(gradients, expected[rows], msg=field)
        others = torch.ones(len(expected), dtype=torch.bool)
        others[rows] = False
        assert not expected[others].any()


def _gradient(model: nn.Module, name: str) -> Tensor:
    gradient = model.get_parameter(name).grad
    assert gradient is not None
    return gradient


def check_sparse(directory: Path, size: int) -> None:
    """Checks gradients and weights of workers against one process."""
    learner, model = make_learner(0, USERS)
    expected = learner.gradients(BATCH)
    for _ in range(2):
        learner.step(BATCH, 0.01)
    weights = model.state_dict()
    users = []
    for rank in range(size):
        found: dict[str, Any] = torch.load(directory / f"sparse-{rank}.pt", weights_only=True)
        first, end = USER_BOUNDS[size][rank : rank + 2]
        users.append(by_row(found["rows"]["user_idx"], first))
        for field in ("item_idx", "recent"):
            torch.testing.assert_close(by_row(found["rows"][field]), by_row(expected.rows[field]), msg=field)
        for mine, other in zip(found["dense"], expected.dense, strict=True):
            torch.testing.assert_close(mine, other)
        for name, tensor in found["weights"].items():
            other = weights[name][first:end] if name in model.user_tables else weights[name]
            torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-5, msg=f"{name} on worker {rank}")
    together = {row: gradient for part in users for row, gradient in part.items()}
    torch.testing.assert_close(together, by_row(expected.rows["user_idx"]))


def by_row(found: tuple[Tensor, Tensor], first: int = 0) -> dict[int, Tensor]:
    return {first + int(row): gradient for row, gradient in zip(*found, strict=True)}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_gradients_of_workers_equal_those_of_one_process(tmp_path: Path, size: int) -> None:
    expected = gradients(RECIPE.train.model_copy(update={"l2": 0.1}), [slice(0, B)])
    run_group(_save_gradients, size, tmp_path)
    for rank in range(size):
        found: dict[str, Any] = torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=f"{name} on worker {rank}")
    check_sparse(tmp_path, size)


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
