"""Epochs, warm-up, early stopping, and checkpoints that continue bit for bit."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_recsys.config import NeuMFRecipe, Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.evaluation.metric_sums import MetricSums
from ray_recsys.core.models.neumf import NeuMF
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.sampling.epoch_stream import Batch
from ray_recsys.core.training import loop
from ray_recsys.core.training.checkpoint import (
    BEST,
    checkpoint_name,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from ray_recsys.core.training.curves import write_curves
from ray_recsys.core.training.learner import DenseLearner
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.errors import IntegrityError, SchemaVersionError, StageError
from ray_recsys.storage.location import Location
from tests.factories import change_a_byte, make_prepared_set

USERS, ITEMS, STEPS = 60, 40, 3


class FixedFeed:
    """Three batches an epoch; users like the items of their own parity."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        rng = np.random.default_rng(epoch)
        for step in range(STEPS):
            users = rng.integers(0, USERS, 32)
            items = rng.integers(0, ITEMS // 2, (32, 4)) * 2 + (users % 2)[:, None]
            items[:, 1:] ^= 1
            if step >= first_step:
                yield Batch(users, items.astype(np.int32), np.ones(32, np.float32), None, 32)


def recipe(**train: object) -> Recipe:
    model = {"embedding_dim": 4, "mlp_layers": [8, 4], "dropout": 0.2, "init_std": 0.1}
    defaults = {"epochs": 4, "learning_rate": 0.02}
    return parse_recipe({"model": model, "train": defaults | train}, "test")


def trainer_of(chosen: Recipe) -> Trainer:
    assert isinstance(chosen.model, NeuMFRecipe)
    generator = torch.Generator().manual_seed(chosen.seed)
    return Trainer(NeuMF(USERS, ITEMS, chosen.model, chosen.train, generator=generator), chosen.train)


def no_validation() -> Validation:
    return Validation([], 256, 1, has_ratings=False)


def record(epoch: int, ndcg: float | None) -> EpochRecord:
    return EpochRecord(epoch, 1.0, {} if ndcg is None else {"NDCG@10": ndcg}, 1.0, 1.0, 1.0)


def test_loss_falls_and_validation_is_measured(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=USERS, num_items=ITEMS)
    trainer = trainer_of(recipe(epochs=8))
    records: list[EpochRecord] = []
    validation = Validation.read(prepared, recipe(epochs=8))
    train_epochs(trainer, FixedFeed(), validation, 1, lambda record, _: records.append(record))
    assert [r.epoch for r in records] == list(range(1, 9))
    assert records[-1].loss < 0.8 * records[0].loss
    assert all(0 < r.metrics["NDCG@10"] < 1 and r.samples_per_s > 0 for r in records)


def test_validation_shares_add_up_to_the_whole(tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=USERS, num_items=ITEMS)
    for max_users in (1000, 30):
        chosen = recipe(max_validation_users=max_users)
        model = trainer_of(chosen).model.export()
        shares = [Validation.read(prepared, chosen, rank=r, world_size=2).measure(model) for r in range(2)]
        whole = Validation.read(prepared, chosen).measure(model)
        assert shares[0] + shares[1] == whole
        assert whole.num_users == USERS if max_users > USERS else 15 < whole.num_users < 45


def test_early_stopping_and_the_first_best_epoch() -> None:
    trainer = trainer_of(recipe(epochs=10, early_stopping_epochs=2))
    for epoch, ndcg in enumerate([0.1, 0.3, None, 0.3], start=1):
        assert not trainer.is_done
        trainer.finish_epoch(record(epoch, ndcg))
    assert trainer.is_done
    assert (trainer.progress.best_epoch, trainer.progress.best_metrics) == (2, {"NDCG@10": 0.3})


def test_without_validation_the_last_epoch_is_the_best() -> None:
    trainer = trainer_of(recipe(epochs=3, early_stopping_epochs=1))
    for epoch in (1, 2, 3):
        assert not trainer.is_done
        trainer.finish_epoch(record(epoch, None))
    assert trainer.is_done
    assert trainer.progress.best_epoch == 3


def test_epochs_without_validation_end_nothing() -> None:
    trainer = trainer_of(recipe(epochs=30, early_stopping_epochs=5, validate_every_epochs=10))
    values = {10: 0.1, 20: 0.2, 30: 0.2}
    for epoch in range(1, 30):
        trainer.finish_epoch(record(epoch, values.get(epoch)))
        assert not trainer.is_done
    trainer = trainer_of(recipe(epochs=99, early_stopping_epochs=5, validate_every_epochs=10))
    for epoch in range(1, 21):
        assert not trainer.is_done
        trainer.finish_epoch(record(epoch, 0.1 if epoch % 10 == 0 else None))
    assert trainer.is_done


class ExplodingFeed(FixedFeed):
    """Its second epoch's third batch has a weight that no loss survives."""

    def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(super().batches(epoch, first_step), start=first_step):
            if (epoch, step) == (2, 2):
                batch.weight[5] = np.inf
            yield batch


def test_a_loss_that_is_not_finite_ends_training_before_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(recipe())
    records: list[EpochRecord] = []
    validated: list[int] = []

    def measure(*_: object) -> MetricSums:
        validated.append(1)
        return MetricSums()

    monkeypatch.setattr(Validation, "measure", measure)
    message = r"epoch 2, step 3 \(step 6 of the run\), with learning rate 0\.02 and a batch of 32 positives.*\(0\.02\)"
    with pytest.raises(StageError, match=message):
        train_epochs(trainer, ExplodingFeed(), no_validation(), 1, lambda record, _: records.append(record))
    assert len(validated) == len(records) == 1


@pytest.mark.parametrize(("limit_s", "num_epochs"), [(1e-9, 1), (None, 4), (1e9, 4)])
def test_training_ends_before_an_epoch_that_would_take_too_long(limit_s: float | None, num_epochs: int) -> None:
    trainer = trainer_of(recipe(max_time_s=limit_s))
    train_epochs(trainer, FixedFeed(), no_validation(), 1, lambda *_: None)
    assert trainer.progress.num_epochs == num_epochs


@pytest.mark.parametrize(("limit_s", "num_epochs"), [(29.0, 2), (31.0, 4)])
def test_the_time_of_epochs_before_a_resume_counts(limit_s: float, num_epochs: int) -> None:
    trainer = trainer_of(recipe(max_time_s=limit_s))  # two epochs took 20 s; a third would end after 30 s
    for epoch in (1, 2):
        trainer.finish_epoch(EpochRecord(epoch, 0.5, {}, 1.0, train_s=8.0, validate_s=2.0))
    train_epochs(trainer, FixedFeed(), no_validation(), 1, lambda *_: None)
    assert trainer.progress.num_epochs == num_epochs


def test_warmup() -> None:
    trainer = trainer_of(recipe(warmup_steps=4, epochs=2))
    rates: list[float] = []

    class Feed(FixedFeed):
        def batches(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            for batch in super().batches(epoch, first_step):
                yield batch
                assert isinstance(trainer.learner, DenseLearner)
                rates.append(trainer.learner.optimizer.param_groups[0]["lr"])

    train_epochs(trainer, Feed(), no_validation(), 1, lambda *_: None)
    assert rates == pytest.approx([0.02 * share for share in (0.25, 0.5, 0.75, 1, 1, 1)])


@pytest.mark.parametrize("stop", [1, 2, 4, 5, 8])
def test_a_run_resumes_at_any_step_bit_for_bit(tmp_path: Path, stop: int) -> None:
    straight = trainer_of(recipe())
    train_epochs(straight, FixedFeed(), no_validation(), 1, lambda *_: None)

    interrupted = trainer_of(recipe(checkpoint_every_s=1e-9))  # after every step
    num_calls = 0

    def checkpoint() -> None:
        nonlocal num_calls
        num_calls += 1
        assert interrupted.progress.partial.num_steps > 0
        if interrupted.progress.num_steps == stop:
            (tmp_path / "c").mkdir()
            save_checkpoint(interrupted, tmp_path / "c", tmp_path / "best")
            raise KeyboardInterrupt

    def after_epoch(*_: object) -> None:
        (tmp_path / f"e{interrupted.progress.num_epochs}").mkdir()
        save_checkpoint(interrupted, tmp_path / f"e{interrupted.progress.num_epochs}", tmp_path / "best")

    with pytest.raises(KeyboardInterrupt):
        train_epochs(interrupted, FixedFeed(), no_validation(), 1, after_epoch, on_checkpoint=checkpoint)
    assert num_calls == stop  # so that it ran after every step
    resumed = trainer_of(recipe())
    load_checkpoint(resumed, tmp_path / "c", tmp_path / "restored")
    epochs, steps = divmod(stop - 1, STEPS)
    assert (resumed.progress.num_epochs, resumed.progress.partial.num_steps) == (epochs, steps + 1)
    train_epochs(resumed, FixedFeed(), no_validation(), 1, lambda *_: None)
    expected = straight.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())
    assert [r.loss for r in resumed.progress.records] == pytest.approx([r.loss for r in straight.progress.records])


def test_checkpoints_come_in_time_and_seldom_ask_the_other_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, num_asked = 0.0, 0

    def reduce(device: torch.device, operation: object, *values: float) -> list[float]:  # noqa: ARG001
        nonlocal num_asked
        num_asked += 1
        return list(values)

    monkeypatch.setattr(loop, "_reduce", reduce)
    monkeypatch.setattr(time, "perf_counter", lambda: clock)
    timer = loop._CheckpointTimer(300.0, torch.device("cpu"))
    while not timer.is_due():
        clock += 0.01
        assert clock < 310
    assert clock >= 300
    assert num_asked < 40


def test_the_newest_whole_checkpoint_is_found_beside_damaged_and_half_written_ones(tmp_path: Path) -> None:
    trainer = trainer_of(recipe())
    paths = []
    for epoch, directory in enumerate(["train-0001", "train-0001", "train-0002"], start=1):
        trainer.finish_epoch(record(epoch, None))
        paths.append(tmp_path / directory / checkpoint_name(trainer.progress))
        paths[-1].mkdir(parents=True)
        save_checkpoint(trainer, paths[-1], tmp_path / "best")
    directories = sorted(tmp_path.glob("train-*"))
    assert newest_checkpoint(directories) == (Location.of(paths[2]), [])
    change_a_byte(paths[2] / "optimizer.pt")
    found, damaged = newest_checkpoint(directories)
    assert found == Location.of(paths[1])
    assert "optimizer.pt" in damaged[0].message
    (paths[1] / "manifest.json").unlink()  # an upload that a kill ended
    found, damaged = newest_checkpoint(directories)
    assert (found, len(damaged)) == (Location.of(paths[0]), 2)
    assert newest_checkpoint([tmp_path / "nothing"]) == (None, [])


def test_a_checkpoint_continues_bit_for_bit_and_keeps_the_best_model(tmp_path: Path) -> None:
    straight = trainer_of(recipe())
    train_epochs(straight, FixedFeed(), no_validation(), 1, lambda *_: None)

    first = trainer_of(recipe(epochs=2))
    checkpoints = [tmp_path / "epoch-1", tmp_path / "epoch-2"]

    def after_epoch(finished: EpochRecord, _: bool) -> None:
        first.progress.records[0].metrics["NDCG@10"] = 0.5  # the first epoch stays the best
        first.progress.best_epoch = 1
        checkpoints[finished.epoch - 1].mkdir()
        save_checkpoint(first, checkpoints[finished.epoch - 1], tmp_path / "best")

    train_epochs(first, FixedFeed(), no_validation(), 1, after_epoch)
    second = trainer_of(recipe())
    load_checkpoint(second, checkpoints[1], tmp_path / "restored")
    assert second.progress == first.progress
    after_1, after_2, restored = (
        load_model(path).scores(load_model(path).users(np.arange(USERS)))
        for path in (checkpoints[0] / BEST, checkpoints[1] / BEST, tmp_path / "restored")
    )
    assert np.array_equal(after_1, after_2)
    assert np.array_equal(after_1, restored)
    assert not np.array_equal(after_1, first.model.export().scores(first.model.export().users(np.arange(USERS))))
    train_epochs(second, FixedFeed(), no_validation(), 1, lambda *_: None)

    expected = straight.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.model.state_dict().items())
    write_curves(tmp_path / "curves.csv", second.progress.records)
    lines = (tmp_path / "curves.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,NDCG@10,samples_per_s,train_s,validate_s"
    assert len(lines) == 5


@pytest.mark.parametrize("name", ["weights.safetensors", "best/model.json", "optimizer.pt", "progress.json"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, name: str) -> None:
    trainer = trainer_of(recipe())
    trainer.finish_epoch(record(1, None))
    (tmp_path / "c").mkdir()
    save_checkpoint(trainer, tmp_path / "c", tmp_path / "best")
    change_a_byte(tmp_path / "c" / name)
    with pytest.raises(IntegrityError, match=name):
        load_checkpoint(trainer, tmp_path / "c", tmp_path / "restored")


def test_another_schema_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(recipe())
    trainer.finish_epoch(record(1, None))
    monkeypatch.setattr("ray_recsys.core.training.checkpoint.SCHEMA_VERSION", 99)
    (tmp_path / "c").mkdir()
    save_checkpoint(trainer, tmp_path / "c", tmp_path / "best")
    monkeypatch.undo()
    with pytest.raises(SchemaVersionError, match="99"):
        load_checkpoint(trainer, tmp_path / "c", tmp_path / "restored")


def test_explicit_ratings_follow_rmse() -> None:
    explicit = parse_recipe(
        {"input": {"rating_column": "rating"}, "train": {"objective": "explicit", "early_stopping_epochs": 2}}, "test"
    )
    trainer = trainer_of(explicit)
    for epoch, (rmse, ndcg) in enumerate([(1.2, 0.1), (0.9, 0.0), (1.0, 0.2), (0.9, 0.3)], start=1):
        assert not trainer.is_done
        trainer.finish_epoch(EpochRecord(epoch, 1.0, {"RMSE": rmse, "NDCG@10": ndcg}, 1.0, 1.0, 1.0))
    assert trainer.is_done
    assert trainer.progress.best_epoch == 2
