"""Ray Train for real: two workers learn, a killed worker and a resumed run end like an uninterrupted one."""

import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ray_recsys.config import Recipe
from ray_recsys.core.learning.run import Run
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.distributed.training import TrainResult, train
from ray_recsys.errors import ArtifactError, ClusterError, StageError
from ray_recsys.recipe_files import parse_recipe
from tests.factories import make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
EPOCHS = 40


def recipe(**train_keys: object) -> Recipe:
    sections = {
        "model": {"embedding_dim": 4, "mlp_layers": [8, 4], "init_std": 0.1, "dropout": 0.1},
        "train": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.01, "early_stopping_epochs": "none"},
    }
    sections["train"].update({"cpus_per_worker": 0.5, "threads_per_worker": 1, **train_keys})
    return parse_recipe(sections, "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("train") / "data", num_users=61, num_partitions=4)


@pytest.fixture(scope="module")
def uninterrupted(prepared: PreparedSet) -> tuple[TrainResult, list[str]]:
    lines: list[str] = []
    return train(prepared.path, prepared.path.parent / "straight", recipe(), report=lines.append), lines


def kill_a_worker_after(curves: Path, num_epochs: int) -> threading.Thread:
    """Kills one train worker of this session, once, when the curves have so many epochs."""

    def watch() -> None:
        deadline_s = time.monotonic() + 120
        while time.monotonic() < deadline_s:
            if curves.exists() and len(curves.read_text().splitlines()) > num_epochs:
                workers = [p for p in psutil.Process().children(recursive=True) if "TrainWorker" in _title(p)]
                if workers:
                    workers[0].kill()
                    return
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def weights_differ(run: Path, other: Path, name: str) -> list[str]:
    mine, theirs = (load_file(path / name / "model.safetensors") for path in (run, other))
    return [key for key in mine if not torch.equal(mine[key], theirs[key])]


def test_two_workers_learn(uninterrupted: tuple[TrainResult, list[str]]) -> None:
    result, lines = uninterrupted
    run = Run.open(result.run)
    run.verify()
    losses = [float(line.split(",")[1]) for line in (run.path / "curves.csv").read_text().splitlines()[1:]]
    assert len(losses) == result.num_epochs == EPOCHS
    assert losses[-1] < 0.9 * losses[0]
    assert result.metrics["NDCG@10"] == run.manifest.metrics["NDCG@10"] > 0
    assert sum(line.startswith("epoch ") for line in lines) == EPOCHS
    assert not (run.path / "ray").exists()
    assert run.load_model().num_users == 61


def test_a_killed_worker_does_not_change_the_outcome(
    uninterrupted: tuple[TrainResult, list[str]], prepared: PreparedSet
) -> None:
    run = prepared.path.parent / "killed"
    killer = kill_a_worker_after(run / "curves.csv", 3)
    result = train(prepared.path, run, recipe(max_failures=2))
    killer.join(1)
    assert not killer.is_alive()
    assert result.metrics == uninterrupted[0].metrics
    for name in ("best", "last"):
        assert not weights_differ(run, uninterrupted[0].run, name)


def test_a_run_that_was_cut_off_is_resumed(uninterrupted: tuple[TrainResult, list[str]], prepared: PreparedSet) -> None:
    run = prepared.path.parent / "resumed"
    kill_a_worker_after(run / "curves.csv", 3)
    with pytest.raises(StageError, match="training failed"):
        train(prepared.path, run, recipe(max_failures=0))
    with pytest.raises(ArtifactError, match="--resume"):
        Run.open(run)
    lines: list[str] = []
    result = train(prepared.path, run, recipe(), resume=True, report=lines.append)
    assert result.num_epochs == EPOCHS
    assert 0 < sum(line.startswith("epoch ") for line in lines) < EPOCHS
    for name in ("best", "last"):
        assert not weights_differ(run, uninterrupted[0].run, name)
    assert train(prepared.path, run, recipe(), resume=True).metrics == result.metrics  # finished: nothing to do


def test_more_workers_than_the_cluster_has_is_said_at_once(prepared: PreparedSet) -> None:
    with pytest.raises(ClusterError, match="num_workers"):
        train(prepared.path, prepared.path.parent / "large", recipe(num_workers=1000))
