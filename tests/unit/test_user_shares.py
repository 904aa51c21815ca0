"""Users split among workers: shares end between users, and a checkpoint goes on with any number of workers."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.models.neumf import build
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.checkpoint import BEST, load_checkpoint, save_checkpoint
from ray_recsys.core.training.learner import SparseLearner
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import Trainer
from ray_recsys.core.training.user_shares import UserShares
from ray_recsys.core.training.validation import Validation
from tests.factories import make_prepared_set
from tests.unit.test_data_parallel import run_group

RECIPE = parse_recipe(
    {
        "model": {"embedding_dim": 4, "mlp_layers": [4], "init_std": 0.1, "recent_items": 3},
        "train": {"epochs": 1, "batch_size": 64, "optimizer": "sparse_adam", "l2": 0.01},
    },
    "test",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("shares") / "data", num_users=30)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 60])
def test_every_user_has_all_positives_on_one_worker(prepared: PreparedSet, world_size: int) -> None:
    shares = UserShares.of(prepared, rank=0, world_size=world_size)
    assert (shares.users[0], shares.users[-1]) == (0, 30)
    total = prepared.manifest.num_training
    assert all(abs(cut - total * n / world_size) <= 13 for n, cut in enumerate(shares.positives))
    found = np.zeros(30, np.int64)
    for rank, (first, end) in enumerate(pairwise(shares.users)):
        feed = local_feed(prepared, RECIPE, rank=rank, world_size=world_size, shares=shares.positives)
        users = np.concatenate([batch.user_idx for batch in feed.batches(1)])
        assert len(users) == shares.positives[rank + 1] - shares.positives[rank]
        assert ((users >= first) & (users < end)).all()
        found += np.bincount(users, minlength=30)
    lengths = [prepared.read_partition(p).training.lengths for p in range(len(prepared.manifest.partitions))]
    assert np.array_equal(found, np.concatenate(lengths))


def test_initial_rows_do_not_depend_on_the_split(prepared: PreparedSet) -> None:
    whole = build(prepared, RECIPE, range(30))
    for users in (range(4), range(4, 30)):
        part = build(prepared, RECIPE, users)
        assert (part.num_users, len(part.user_gmf)) == (len(users), len(users))
        for name, tensor in part.state_dict().items():
            expected = whole.state_dict()[name]
            assert torch.equal(tensor, expected[users.start : users.stop] if name in part.user_tables else expected)
        assert part.latest_items is not None
        assert whole.latest_items is not None
        assert np.array_equal(part.latest_items, whole.latest_items[users.start : users.stop])


def make_trainer(prepared: PreparedSet, rank: int, size: int) -> tuple[Trainer, UserShares]:
    shares = UserShares.of(prepared, rank=rank, world_size=size)
    users = shares.users_of(rank)
    return Trainer(build(prepared, RECIPE, users), RECIPE.train, users=users), shares


def measure(trainer: Trainer, prepared: PreparedSet, rank: int, size: int) -> MetricSums:
    validation = Validation.read(prepared, RECIPE, rank=rank, world_size=size, users=trainer.users)
    return validation.measure(trainer.model.export())


def rows_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Returns the users' rows and what the optimizer knows of them."""
    assert isinstance(trainer.learner, SparseLearner)
    tables = {name: trainer.model.get_parameter(name).detach() for name in trainer.model.user_tables}
    return tables | trainer.learner.user_optimizer.state()


def _train_and_save(rank: int, size: int, directory: Path) -> None:
    prepared = PreparedSet.open(directory / "data")
    trainer, shares = make_trainer(prepared, rank, size)
    feed = local_feed(prepared, RECIPE, rank=rank, world_size=size, shares=shares.positives)
    validation = Validation.read(prepared, RECIPE, rank=rank, world_size=size, users=trainer.users)
    train_epochs(trainer, feed, validation, 1, lambda *_: None)
    _save(trainer, directory / f"parts-{rank}", directory / f"best-{rank}")
    torch.save(rows_of(trainer), directory / f"rows-{rank}.pt")


def _save(trainer: Trainer, directory: Path, best: Path) -> None:
    directory.mkdir()
    save_checkpoint(trainer, directory, best)


def _load_and_save(rank: int, size: int, directory: Path) -> None:
    prepared = PreparedSet.open(directory / "data")
    trainer, _ = make_trainer(prepared, rank, size)
    load_checkpoint(trainer, directory / "one", directory / f"best-{rank}")
    _save(trainer, directory / f"parts-{rank}", directory / f"best-{rank}")
    sums = measure(trainer, prepared, rank, size)
    torch.save(rows_of(trainer) | {"num_users": torch.tensor(sums.num_users)}, directory / f"rows-{rank}.pt")


def join_parts(directory: Path, size: int) -> Path:
    """Puts the workers' parts of a checkpoint together, as Ray Train's storage does."""
    for rank in range(size):
        shutil.copytree(directory / f"parts-{rank}", directory / "joined", dirs_exist_ok=True)
    return directory / "joined"


def check_rows(directory: Path, size: int, trainer: Trainer) -> None:
    parts = [torch.load(directory / f"rows-{rank}.pt", weights_only=True) for rank in range(size)]
    for name, tensor in rows_of(trainer).items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor), name


def test_a_checkpoint_of_two_workers_goes_on_with_one_and_one_of_one_with_three(
    prepared: PreparedSet, tmp_path: Path
) -> None:
    for name in ("two", "three"):
        shutil.copytree(prepared.path, tmp_path / name / "data")
    run_group(_train_and_save, 2, tmp_path / "two")
    alone, _ = make_trainer(prepared, 0, 1)
    before = rows_of(alone)["user_gmf"].clone()
    load_checkpoint(alone, join_parts(tmp_path / "two", 2), tmp_path / "best")
    check_rows(tmp_path / "two", 2, alone)
    assert not torch.equal(before, rows_of(alone)["user_gmf"])
    whole = measure(alone, prepared, 0, 1)
    assert whole.means() == pytest.approx(alone.progress.records[0].metrics)
    users = np.arange(30)
    best = load_model(tmp_path / "best")
    assert best.num_users == 30
    ours = alone.model.export()
    assert np.array_equal(best.scores(best.users(users)), ours.scores(ours.users(users)))

    _save(alone, tmp_path / "three" / "one", tmp_path / "best")
    run_group(_load_and_save, 3, tmp_path / "three")
    check_rows(tmp_path / "three", 3, alone)
    counted = [torch.load(tmp_path / "three" / f"rows-{rank}.pt", weights_only=True)["num_users"] for rank in range(3)]
    assert sum(int(count) for count in counted) == whole.num_users == 30
    again = load_model(join_parts(tmp_path / "three", 3) / BEST)
    assert np.array_equal(again.scores(again.users(users)), ours.scores(ours.users(users)))
