"""Two workers of a gloo group: what one of them meets in validation ends both, instead of leaving the other waiting."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.epochs import train_epochs
from ray_recsys.core.training.learner import Learner
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import StageError
from tests.factories import make_prepared_set

RECIPE = parse_recipe({"model": {"embedding_dim": 4, "mlp_layers": [4]}, "train": {"epochs": 1}}, "test")


class NoBatches:
    """An epoch whose loss is 0, whatever the weights are."""

    def batches(self, epoch: int) -> Iterator[Batch]:  # noqa: ARG002
        return iter(())


def work(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/group", rank=rank, world_size=2)
    prepared = PreparedSet.open(directory / "data")
    learner = Learner(RECIPE, prepared.manifest.num_users, prepared.manifest.num_items)
    with torch.no_grad():
        learner.model.item_bias.fill_(float("nan"))
    validation = Validation.read(prepared, RECIPE) if rank == 0 else Validation([], RECIPE)
    try:
        train_epochs(learner, NoBatches(), validation, lambda _: None)
    except StageError as error:
        (directory / f"error-{rank}").write_text(str(error), encoding="utf8")
    dist.destroy_process_group()


def test_a_score_that_is_not_finite_on_one_worker_ends_both(tmp_path: Path) -> None:
    make_prepared_set(tmp_path / "data")
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work, args=(rank, tmp_path), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        alive = worker.is_alive()
        worker.kill()
        assert not alive, "a worker waits for the other one"
    errors = [(tmp_path / f"error-{rank}").read_text(encoding="utf8") for rank in range(2)]
    assert errors[0] == errors[1]
    assert "score is nan" in errors[0]
