"""The exponential moving average of the weights: what it is, where it is used, and that it survives a restart."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ray_recsys.core.models.registry import load_model
from ray_recsys.core.training.checkpoint import AVERAGE, BEST, load_checkpoint, save_checkpoint
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.errors import IntegrityError, RecipeError
from tests.factories import change_a_byte
from tests.unit.test_checkpoint_faults import all_scores
from tests.unit.test_trainer import FixedFeed, no_validation, recipe, trainer_of


def test_it_is_the_average_by_its_definition() -> None:
    trainer = trainer_of(recipe(ema_decay=0.75))
    assert np.array_equal(all_scores(trainer.export()), all_scores(trainer.model.export()))  # before any step
    seen = []
    for batch in FixedFeed().batches(1):
        trainer.step(batch)
        seen.append({name: tensor.double() for name, tensor in trainer.model.state_dict().items()})
    first, second, third = seen
    assert trainer.average is not None
    for name, tensor in trainer.average.module.state_dict().items():
        expected = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * third[name]
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-7)


def test_the_best_model_has_the_average_weights_and_training_the_others(tmp_path: Path) -> None:
    plain, averaged = trainer_of(recipe()), trainer_of(recipe(ema_decay=0.9))
    for trainer in (plain, averaged):
        train_epochs(trainer, FixedFeed(), no_validation(), 1, lambda *_: None)
    assert np.array_equal(all_scores(plain.model.export()), all_scores(averaged.model.export()))
    (tmp_path / "c").mkdir()
    save_checkpoint(averaged, tmp_path / "c", tmp_path / "best")
    best = all_scores(load_model(tmp_path / "c" / BEST))
    assert np.array_equal(best, all_scores(averaged.export()))
    assert not np.allclose(best, all_scores(plain.export()), atol=1e-3)


@pytest.mark.parametrize("num_epochs", [1, 3])
def test_it_resumes_bit_for_bit(tmp_path: Path, num_epochs: int) -> None:
    straight, first, second = (trainer_of(recipe(ema_decay=0.9, epochs=n)) for n in (4, num_epochs, 4))
    train_epochs(straight, FixedFeed(), no_validation(), 1, lambda *_: None)
    train_epochs(first, FixedFeed(), no_validation(), 1, lambda *_: None)
    (tmp_path / "c").mkdir()
    save_checkpoint(first, tmp_path / "c", tmp_path / "best")
    load_checkpoint(second, tmp_path / "c", tmp_path / "restored")
    train_epochs(second, FixedFeed(), no_validation(), 1, lambda *_: None)
    assert np.array_equal(all_scores(second.export()), all_scores(straight.export()))


def test_a_damaged_average_is_refused(tmp_path: Path) -> None:
    trainer = trainer_of(recipe(ema_decay=0.9, epochs=1))
    train_epochs(trainer, FixedFeed(), no_validation(), 1, lambda *_: None)
    (tmp_path / "c").mkdir()
    save_checkpoint(trainer, tmp_path / "c", tmp_path / "best")
    change_a_byte(tmp_path / "c" / AVERAGE)
    with pytest.raises(IntegrityError, match=AVERAGE):
        load_checkpoint(trainer, tmp_path / "c", tmp_path / "restored")


def test_the_sparse_optimizer_refuses_it() -> None:
    with pytest.raises(RecipeError, match=r"ema_decay.*optimizer = \"adam\""):
        recipe(ema_decay=0.9, optimizer="sparse_adam")
