"""What a killed or failing process leaves behind never becomes a checkpoint, nor changes the one that is read."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_recsys.core.arrays import Float32s
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.training import checkpoint as checkpoints
from ray_recsys.core.training.checkpoint import BEST, OPTIMIZER, load_checkpoint, newest_checkpoint, save_checkpoint
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.trainer import Trainer
from ray_recsys.distributed.train_worker import scratch_directory
from ray_recsys.storage.location import Location
from tests.unit.test_trainer import USERS, FixedFeed, no_validation, recipe, record, trainer_of


def trained(num_epochs: int) -> Trainer:
    trainer = trainer_of(recipe(epochs=num_epochs))
    train_epochs(trainer, FixedFeed(), no_validation(), 1, lambda *_: None)
    return trainer


def save(trainer: Trainer, directory: Path, best: Path) -> Path:
    directory.mkdir(parents=True)
    save_checkpoint(trainer, directory, best)
    return directory


def all_scores(model: Any) -> Float32s:
    scores: Float32s = model.scores(model.users(np.arange(USERS)))
    return scores


def test_a_checkpoint_of_a_gpu_is_restored_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trained(2)
    with monkeypatch.context() as patched:
        patched.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")  # what a GPU's tensors are saved as
        directory = save(trainer, tmp_path / "c", tmp_path / "best")
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(directory / OPTIMIZER, weights_only=True)
    restored = trainer_of(recipe(epochs=2))
    load_checkpoint(restored, directory, tmp_path / "restored")
    averages = [entry["exp_avg"] for entry in restored.learner.state_dict()["state"].values()]
    expected = [entry["exp_avg"] for entry in trainer.learner.state_dict()["state"].values()]
    assert len(averages) == len(expected) > 0
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(averages, expected, strict=True))


def test_the_best_model_is_the_checkpoints_and_not_what_an_upload_that_never_arrived_left(tmp_path: Path) -> None:
    trainer, best = trainer_of(recipe(epochs=9)), tmp_path / "best"
    trainer.finish_epoch(record(1, 0.5))
    committed = save(trainer, tmp_path / "epoch-000001", best)
    expected = all_scores(trainer.model.export())
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    trainer.finish_epoch(record(2, 0.9))  # better; its checkpoint is written, and its upload is lost
    lost = save(trainer, tmp_path / "epoch-000002", best)
    (lost / "manifest.json").unlink()
    assert not np.array_equal(all_scores(load_model(best)), expected)

    resumed = trainer_of(recipe(epochs=9))
    found, damaged = newest_checkpoint([tmp_path])
    assert (found, len(damaged)) == (Location.of(committed), 1)
    load_checkpoint(resumed, committed, best)
    assert resumed.progress.best_epoch == 1
    resumed.finish_epoch(record(2, 0.1))  # the second epoch again: not the best this time
    again = save(resumed, tmp_path / "again", best)
    assert np.array_equal(all_scores(load_model(again / BEST)), expected)


@pytest.mark.parametrize("writer", ["save_file", "write_manifest"])
def test_a_disk_that_is_full_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: str) -> None:
    trainer, best = trainer_of(recipe(epochs=9)), tmp_path / "best"
    trainer.finish_epoch(record(1, 0.5))
    whole = save(trainer, tmp_path / "epoch-000001", best)
    trainer.finish_epoch(record(2, 0.9))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, writer, fail)
        with pytest.raises(OSError, match="No space left"):
            save(trainer, tmp_path / "epoch-000002", best)
    found, damaged = newest_checkpoint([tmp_path])
    assert found == Location.of(whole)
    assert len(damaged) == 1
    later = save(trainer, tmp_path / "epoch-000003", best)  # there is room again
    assert newest_checkpoint([tmp_path])[0] == Location.of(later)


def test_scratch_of_killed_workers_is_removed_and_that_of_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait(60)
    living, other = tmp_path / f"ray-recsys-train-{os.getpid()}-abc", tmp_path / "ray-recsys-other"
    dead = tmp_path / f"ray-recsys-train-{killed.pid}-abc"
    for directory in (living, other, dead):
        (directory / "best").mkdir(parents=True)
    with scratch_directory() as scratch:
        assert scratch.is_dir()
        assert (living.exists(), other.exists(), dead.exists()) == (True, True, False)
    assert not scratch.exists()
