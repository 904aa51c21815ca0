"""Ray Train for real: two workers learn; what loses a worker, then all of them, ends like what loses none."""

import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.run import Run, TrainResult
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.training import train as train_on
from ray_recsys.errors import ArtifactError, ClusterError, IntegrityError, StageError
from ray_recsys.progress import EpochFinished, Event
from tests.factories import change_a_byte, make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
EPOCHS = 20


def recipe(**cluster_keys: object) -> Recipe:
    sections: dict[str, dict[str, Any]] = {
        "model": {"embedding_dim": 4, "mlp_layers": [8, 4], "init_std": 0.1, "dropout": 0.1},
        "train": {"epochs": EPOCHS, "batch_size": 64, "learning_rate": 0.03, "early_stopping_epochs": "none"},
    }
    sections["train"]["optimizer"] = "sparse_adam"  # rows of users come from both workers
    sections["cluster"] = {"cpus_per_worker": 0.5, "threads_per_worker": 1, **cluster_keys}
    return parse_recipe(sections, "test")


def train(data: PreparedSet, run: Path, recipe: Recipe, **options: Any) -> TrainResult:
    return train_on(data.path, run, recipe, RayExecutor("train", recipe.cluster), **options)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("train") / "data", num_users=61, num_partitions=4)


@pytest.fixture(scope="module")
def uninterrupted(prepared: PreparedSet) -> tuple[TrainResult, list[Event]]:
    lines: list[Event] = []
    return train(prepared, prepared.path.parent / "straight", recipe(), report=lines.append), lines


def kill_a_worker_after(curves: Path, *num_epochs: int) -> threading.Thread:
    """Kills one train worker of this session whenever the curves have more epochs than the next of the numbers."""

    def watch() -> None:
        for number in num_epochs:
            while not (_count_epochs(curves) > number and _kill_a_worker()):
                time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def _count_epochs(curves: Path) -> int:
    return len(curves.read_text().splitlines()) - 1 if curves.exists() else 0


def _kill_a_worker() -> bool:
    workers = [p for p in psutil.Process().children(recursive=True) if "TrainWorker" in _title(p)]
    for worker in workers[:1]:
        worker.kill()
        worker.wait()
    return bool(workers)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def weights_differ(run: Path, other: Path, name: str) -> list[str]:
    mine, theirs = (load_file(path / name) for path in (run, other))
    return [key for key in mine if not torch.equal(mine[key], theirs[key])]


def test_two_workers_learn(uninterrupted: tuple[TrainResult, list[Event]]) -> None:
    result, lines = uninterrupted
    run = Run.open(result.run)
    run.verify()
    losses = [float(line.split(",")[1]) for line in (run.path / "curves.csv").read_text().splitlines()[1:]]
    assert len(losses) == result.num_epochs == EPOCHS
    assert losses[-1] < 0.9 * losses[0]
    assert result.metrics["NDCG@10"] == run.manifest.metrics["NDCG@10"] > 0
    assert sum(isinstance(line, EpochFinished) for line in lines) == EPOCHS
    assert not (run.path / "ray").exists()
    assert run.load_model().num_users == 61


def test_a_lost_worker_is_replaced_and_a_lost_run_resumed_without_a_trace(
    uninterrupted: tuple[TrainResult, list[Event]], prepared: PreparedSet
) -> None:
    run = prepared.path.parent / "interrupted"
    killer = kill_a_worker_after(run / "curves.csv", 2, 8)
    lines: list[Event] = []
    with pytest.raises(StageError, match="training failed"):
        train(prepared, run, recipe(max_failures=1), report=lines.append)
    killer.join(1)
    assert not killer.is_alive()
    assert max(line.epoch for line in lines if isinstance(line, EpochFinished)) >= 8  # the ninth may be lost unreported
    with pytest.raises(ArtifactError, match="--resume"):
        Run.open(run)
    resumed: list[Event] = []
    result = train(prepared, run, recipe(), resume=True, report=resumed.append)
    assert result.metrics == uninterrupted[0].metrics
    assert 0 < sum(isinstance(line, EpochFinished) for line in resumed) < EPOCHS
    names = {str(path.relative_to(run)) for path in run.rglob("*.safetensors")}
    assert {path.split("/")[0] for path in names if "users-" in path} == {"model", "last"}
    assert len(names) == 6  # of each directory one file that all share, and one per worker
    for name in names:
        assert not weights_differ(run, Path(uninterrupted[0].run), name)
    assert train(prepared, run, recipe(), resume=True).metrics == result.metrics  # finished: nothing to do


def test_more_workers_than_the_cluster_has_is_said_before_anything_is_written(prepared: PreparedSet) -> None:
    run = prepared.path.parent / "large"
    with pytest.raises(ClusterError, match="num_workers"):
        train(prepared, run, recipe(num_workers=1000))
    assert not run.exists()


def test_a_worker_refuses_a_partition_with_a_changed_byte(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "data")
    change_a_byte(data.path / "users/part-00001.parquet")
    with pytest.raises(IntegrityError, match=r"users/part-00001\.parquet was changed"):
        train(data, tmp_path / "run", recipe(max_failures=0))
    assert not (tmp_path / "run" / "manifest.json").exists()
