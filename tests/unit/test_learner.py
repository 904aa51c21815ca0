"""Epochs, warm-up, early stopping, and checkpoints that continue bit for bit."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.models.model_files import load_model
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training.checkpoint import best_model_directory, load_checkpoint, save_checkpoint, write_curves
from ray_recsys.core.training.epochs import train_epochs
from ray_recsys.core.training.learner import EpochRecord, Learner
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import IntegrityError, SchemaVersionError, StageError
from tests.factories import change_a_byte, make_prepared_set

USERS, ITEMS = 60, 40


class FixedFeed:
    """Three batches an epoch; users like the items of their own parity."""

    def batches(self, epoch: int) -> Iterator[Batch]:
        rng = np.random.default_rng(epoch)
        for _ in range(3):
            users = rng.integers(0, USERS, 32)
            items = rng.integers(0, ITEMS // 2, (32, 4)) * 2 + (users % 2)[:, None]
            items[:, 1:] ^= 1
            yield Batch(users, items.astype(np.int32), np.ones(32, np.float32), None, 32)


def recipe(**train: object) -> Recipe:
    model = {"embedding_dim": 4, "mlp_layers": [8, 4], "dropout": 0.2, "init_std": 0.1}
    defaults = {"epochs": 4, "learning_rate": 0.02}
    return parse_recipe({"model": model, "train": defaults | train}, "test")


def record(epoch: int, ndcg: float | None) -> EpochRecord:
    return EpochRecord(epoch, 1.0, {} if ndcg is None else {"NDCG@10": ndcg}, 1.0, 1.0, 1.0)


def test_loss_falls_and_validation_is_measured(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=USERS, num_items=ITEMS)
    learner = Learner(recipe(epochs=8), USERS, ITEMS)
    records: list[EpochRecord] = []
    train_epochs(learner, FixedFeed(), Validation.read(prepared, learner.recipe), records.append)
    assert [r.epoch for r in records] == list(range(1, 9))
    assert records[-1].loss < 0.8 * records[0].loss
    assert all(0 < r.metrics["NDCG@10"] < 1 and r.samples_per_s > 0 for r in records)


def test_validation_shares_add_up_to_the_whole(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=USERS, num_items=ITEMS)
    for max_users in (1000, 30):
        chosen = recipe(max_validation_users=max_users)
        model = Learner(chosen, USERS, ITEMS).model
        shares = [Validation.read(prepared, chosen, rank=r, world_size=2).measure(model) for r in range(2)]
        whole = Validation.read(prepared, chosen).measure(model)
        assert shares[0] + shares[1] == whole
        assert whole.num_users == USERS if max_users > USERS else 15 < whole.num_users < 45


def test_early_stopping_and_the_first_best_epoch() -> None:
    learner = Learner(recipe(epochs=10, early_stopping_epochs=2), USERS, ITEMS)
    for epoch, ndcg in enumerate([0.1, 0.3, None, 0.3], start=1):
        assert not learner.is_done
        learner.finish_epoch(record(epoch, ndcg))
    assert learner.is_done
    assert (learner.progress.best_epoch, learner.progress.best_metrics) == (2, {"NDCG@10": 0.3})


def test_without_validation_the_last_epoch_is_the_best() -> None:
    learner = Learner(recipe(epochs=3, early_stopping_epochs=1), USERS, ITEMS)
    for epoch in (1, 2, 3):
        assert not learner.is_done
        learner.finish_epoch(record(epoch, None))
    assert learner.is_done
    assert learner.progress.best_epoch == 3


def test_epochs_without_validation_end_nothing() -> None:
    learner = Learner(recipe(epochs=30, early_stopping_epochs=5, validate_every_epochs=10), USERS, ITEMS)
    values = {10: 0.1, 20: 0.2, 30: 0.2}
    for epoch in range(1, 30):
        learner.finish_epoch(record(epoch, values.get(epoch)))
        assert not learner.is_done
    learner = Learner(recipe(epochs=99, early_stopping_epochs=5, validate_every_epochs=10), USERS, ITEMS)
    for epoch in range(1, 21):
        assert not learner.is_done
        learner.finish_epoch(record(epoch, 0.1 if epoch % 10 == 0 else None))
    assert learner.is_done


def test_a_loss_that_is_not_finite_ends_training_before_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(recipe(), USERS, ITEMS)
    monkeypatch.setattr(learner, "run_epoch", lambda _: (float("inf"), 1, 1))
    monkeypatch.setattr(Validation, "measure", lambda *_: pytest.fail("it was validated"))
    with pytest.raises(StageError, match="loss inf in epoch 1"):
        train_epochs(learner, FixedFeed(), Validation([], recipe()), lambda _: None)


def test_warmup_and_divergence() -> None:
    learner = Learner(recipe(warmup_steps=4), USERS, ITEMS)
    learner.run_epoch(FixedFeed().batches(1))
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.02 * 3 / 4)
    learner.run_epoch(FixedFeed().batches(2))
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    with pytest.raises(StageError, match=r"learning_rate \(0.02\)"):
        learner.check_loss(1, float("nan"))


def test_a_checkpoint_continues_bit_for_bit_and_keeps_the_best(tmp_path: Path) -> None:
    nothing = Validation([], recipe())
    straight = Learner(recipe(), USERS, ITEMS)
    train_epochs(straight, FixedFeed(), nothing, lambda _: None)

    first = Learner(recipe(epochs=2), USERS, ITEMS)
    train_epochs(first, FixedFeed(), nothing, lambda _: None)
    first.progress.records[0].metrics["NDCG@10"] = 0.5
    first.progress.best_epoch = 1
    first.best_weights = {name: tensor + 1 for name, tensor in first.best_weights.items()}
    (tmp_path / "c").mkdir()
    save_checkpoint(first, tmp_path / "c")
    second = Learner(recipe(), USERS, ITEMS)
    load_checkpoint(second, tmp_path / "c")
    assert second.progress == first.progress
    best = load_model(best_model_directory(tmp_path / "c")).state_dict()
    assert all(torch.equal(best[name], tensor) for name, tensor in second.best_weights.items())
    train_epochs(second, FixedFeed(), nothing, lambda _: None)

    expected = straight.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.model.state_dict().items())
    write_curves(tmp_path / "curves.csv", second.progress.records)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,NDCG@10,samples_per_s,train_s,validate_s"
    assert len(lines) == 5


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "optimizer.pt", "progress.json"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, name: str) -> None:
    learner = Learner(recipe(), USERS, ITEMS)
    learner.finish_epoch(record(1, None))
    save_checkpoint(learner, tmp_path)
    change_a_byte(tmp_path / name)
    with pytest.raises(IntegrityError, match=name):
        load_checkpoint(learner, tmp_path)


def test_another_schema_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(recipe(), USERS, ITEMS)
    learner.finish_epoch(record(1, None))
    monkeypatch.setattr("ray_recsys.core.training.checkpoint.SCHEMA_VERSION", 99)
    save_checkpoint(learner, tmp_path)
    monkeypatch.undo()
    with pytest.raises(SchemaVersionError, match="99"):
        load_checkpoint(learner, tmp_path)
