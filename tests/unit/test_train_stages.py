"""The stages of a training (branches, the whole, refits, seeds), each run in this process instead of by Ray Train."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_recsys.config import ClusterRecipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.arrays import Float32s
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.models.ensemble import Ensemble
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.sampling.window_readers import local_feed
from ray_recsys.core.training.checkpoint import checkpoint_name, save_checkpoint
from ray_recsys.core.training.loop import train_epochs
from ray_recsys.core.training.run import RAY_STORAGE, Run
from ray_recsys.core.training.trainer import EpochRecord, Trainer
from ray_recsys.core.training.validation import Validation
from ray_recsys.distributed import training
from ray_recsys.distributed.resources import FeedResources
from ray_recsys.distributed.train_worker import WorkerArgs, _initial_model
from ray_recsys.progress import Event, Reporter
from ray_recsys.storage.location import Location
from tests.factories import make_prepared_set

BRANCH = {"train": {"epochs": 2, "learning_rate": 0.03}}
MODEL = {"embedding_dim": 4, "mlp_layers": [8, 4], "pretrain": {"gmf": BRANCH, "mlp": BRANCH}}
FUSED = "training NeuMF from its pre-trained GMF and MLP"
STAGES = ["pre-training the GMF branch", "pre-training the MLP branch", FUSED]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Runs stages here; returns the list of (stage, seed, epochs) that they leave."""
    ran: list[tuple[str, int, int]] = []

    def run_stage(sent: WorkerArgs, report: Reporter) -> Location:  # noqa: ARG001 - as the real one
        args = WorkerArgs.model_validate(sent.model_dump())  # as a worker gets it
        prepared = PreparedSet.open(args.data)
        if args.refit_epochs is not None:
            prepared = prepared.with_held_out()
        feed, recipe = local_feed(prepared, args.recipe), args.recipe
        model = _initial_model(prepared, args, None)
        trainer = Trainer(model, recipe.train, steps_per_epoch=feed.plan.num_steps, num_epochs=args.refit_epochs)
        best = Path(tempfile.mkdtemp(dir=str(args.run))) / "best"
        last: list[Path] = []

        def save(_: EpochRecord, is_best: bool) -> None:  # noqa: ARG001 - the loop's
            root = Path(str(args.run)) / RAY_STORAGE / f"{args.stage}-0001"
            last.append(root / checkpoint_name(trainer.progress))
            last[-1].mkdir(parents=True)
            save_checkpoint(trainer, last[-1], best)

        train_epochs(trainer, feed, Validation.read(prepared, recipe), recipe.seed, save)
        feed.close()
        ran.append((args.stage, recipe.seed, trainer.progress.num_epochs))
        return Location.of(last[-1])

    monkeypatch.setattr(training, "run_stage", run_stage)
    monkeypatch.setattr(training, "require_workers", lambda *_, **__: FeedResources("worker", 0.5, 1))
    return ran


def train(data: PreparedSet, run: Path, report: Reporter, **keys: Any) -> Run:
    recipe = parse_recipe({"seed": 5, "model": MODEL, "train": {"epochs": 1, **keys}}, "test")
    training.train(data.path, run, recipe, SerialExecutor(), report=report)
    return Run.open(run)


def scores(run: Run) -> Float32s:
    model = run.load_model()
    return model.scores(model.users(np.arange(model.num_users)))


def test_branches_go_first_and_a_refit_repeats_them(tmp_path: Path, stages: list[tuple[str, int, int]]) -> None:
    data, lines = make_prepared_set(tmp_path / "data"), list[Event]()
    run = train(data, tmp_path / "run", lines.append, refit=True)
    chosen = run.manifest.branch_epochs
    assert stages == [
        ("gmf-train", 5, 2),
        ("mlp-train", 5, 2),
        ("train", 5, 1),
        ("gmf-refit", 5, chosen["gmf"]),
        ("mlp-refit", 5, chosen["mlp"]),
        ("refit", 5, 1),
    ]
    assert [line for line in lines if line in STAGES] == STAGES * 2
    assert (run.manifest.refit, run.manifest.num_epochs) == (True, 1)

    again = tmp_path / "again"
    training.refit(tmp_path / "run", data.path, again, ClusterRecipe(), SerialExecutor())
    assert stages[6:] == stages[3:6]
    np.testing.assert_array_equal(scores(Run.open(again)), scores(run))


def test_several_seeds_become_one_model(tmp_path: Path, stages: list[tuple[str, int, int]]) -> None:
    data = make_prepared_set(tmp_path / "data")
    run = train(data, tmp_path / "run", lambda _: None, num_seeds=2, refit=True)
    assert [name for name, seed, _ in stages if seed == 5] == [
        *("gmf-train", "mlp-train", "train"),
        *("gmf-refit", "mlp-refit", "refit"),
    ]
    assert [name for name, seed, _ in stages if seed == 6] == ["seed1-gmf-refit", "seed1-mlp-refit", "seed1-refit"]
    assert isinstance(run.load_model(), Ensemble)
    one = train(data, tmp_path / "one", lambda _: None, refit=True)
    assert not np.array_equal(scores(run), scores(one))


def test_without_a_refit_every_seed_is_trained_once(tmp_path: Path, stages: list[tuple[str, int, int]]) -> None:
    train(make_prepared_set(tmp_path / "data"), tmp_path / "run", lambda _: None, num_seeds=2)
    assert [(name, seed) for name, seed, _ in stages] == [
        *(("gmf-train", 5), ("mlp-train", 5), ("train", 5)),
        *(("seed1-gmf-train", 6), ("seed1-mlp-train", 6), ("seed1-train", 6)),
    ]
