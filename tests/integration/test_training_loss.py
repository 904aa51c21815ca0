"""What is lost in the middle of an epoch, each killed for real, leaves no trace in the weights; what is lost for good
ends training with an error that says what is missing."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe, parse_recipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.training.checkpoint import newest_checkpoint
from ray_recsys.core.training.run import Run
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.training import train as train_on
from ray_recsys.errors import ArtifactError, StageError
from ray_recsys.progress import EpochFinished, Event, TrainingRestarted
from tests.factories import change_a_byte, make_prepared_set

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
EPOCHS = 3


def recipe(**cluster_keys: object) -> Recipe:
    sections: dict[str, Any] = {
        "model": {"embedding_dim": 4, "mlp_layers": [8, 4], "init_std": 0.1, "dropout": 0.1},
        "train": {"epochs": EPOCHS, "batch_size": 8, "early_stopping_epochs": "none", "checkpoint_every_s": 0.2},
    }
    sections["cluster"] = {"cpus_per_worker": 0.5, "threads_per_worker": 1, **cluster_keys}
    return parse_recipe(sections, "test")


def train(data: PreparedSet, run: Path, chosen: Recipe, **options: Any) -> list[Event]:
    events: list[Event] = []
    train_on(data.path, run, chosen, RayExecutor("train", chosen.cluster), report=events.append, **options)
    return events


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_prepared_set(tmp_path_factory.mktemp("loss") / "data", num_users=500, num_partitions=4)


@pytest.fixture(scope="module")
def straight(prepared: PreparedSet) -> Path:
    run = prepared.path.parent / "straight"
    train(prepared, run, recipe())
    return run


def has_checkpoint_within(epoch: int, run: Path) -> bool:
    """Whether the newest whole checkpoint is one within the epoch, counted from 1."""
    newest, _ = newest_checkpoint(run.glob("ray/train-*"))
    if newest is None:
        return False
    _, done, step, _ = newest.name.split("-")
    return int(done) == epoch - 1 and int(step) > 0


@contextmanager
def once(condition: Callable[[], bool], action: Callable[[], object]) -> Iterator[None]:
    """Performs the action, beside the block, as soon as the condition holds; fails if it never did."""
    is_done, is_over = threading.Event(), threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            if condition():
                action()
                is_done.set()
                return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(30)
    assert is_done.is_set()


def kill_first_worker() -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if "TrainWorker" in " ".join(process.cmdline()):
                process.kill()
                process.wait()
                return
    raise AssertionError("there is no train worker")


def differing_weights(run: Path, other: Path) -> list[str]:
    mine, theirs = (load_file(path / "last/weights.safetensors") for path in (run, other))
    return [key for key in mine if not torch.equal(mine[key], theirs[key])]


def scratch_of_dead_processes() -> list[Path]:
    left = Path(tempfile.gettempdir()).glob("ray-recsys-train-*")
    return [path for path in left if not Path("/proc", path.name.split("-")[3]).exists()]


def test_a_worker_killed_within_an_epoch_leaves_no_trace(prepared: PreparedSet, straight: Path) -> None:
    run = prepared.path.parent / "worker-killed"
    with once(lambda: has_checkpoint_within(2, run), kill_first_worker):
        events = train(prepared, run, recipe())
    (restart,) = (event for event in events if isinstance(event, TrainingRestarted))
    assert (restart.epoch, restart.step) > (1, 0)
    assert differing_weights(run, straight) == []
    before, after = (Run.open(path).manifest.metrics for path in (straight, run))
    assert before == after


def test_a_driver_killed_within_an_epoch_is_resumed_without_a_trace(prepared: PreparedSet, straight: Path) -> None:
    run, file = prepared.path.parent / "driver-killed", prepared.path.parent / "recipe.toml"
    file.write_text(dump_recipe(recipe()), encoding="utf8")
    command = [sys.executable, "-m", "ray_recsys.cli", "train"]
    command += ["--data", str(prepared.path), "--output", str(run), "--recipe", str(file), "--address", "local"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end_s = time.monotonic() + 240
    while not has_checkpoint_within(2, run):
        assert driver.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.01)
    with pytest.raises(ArtifactError, match=f"in use by process {driver.pid} "):
        train(prepared, run, recipe(), resume=True)
    assert not (run / "manifest.json").exists()  # it was killed within training, not after it
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(30)
    events = train(prepared, run, recipe(), resume=True)
    assert sum(isinstance(event, EpochFinished) for event in events) < EPOCHS
    assert differing_weights(run, straight) == []
    assert scratch_of_dead_processes() == []


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_resumed(prepared: PreparedSet, straight: Path) -> None:
    run = prepared.path.parent / "damaged"
    with (
        once(lambda: has_checkpoint_within(3, run), kill_first_worker),
        pytest.raises(StageError, match="training failed on worker"),
    ):
        train(prepared, run, recipe(max_failures=0))
    newest, _ = newest_checkpoint(run.glob("ray/train-*"))
    assert newest is not None
    change_a_byte(Path(newest / "weights.safetensors"))
    for snapshot in run.glob("ray/train-*/*.json"):
        snapshot.write_bytes(snapshot.read_bytes()[:40])  # Ray's own record, half written
    events = train(prepared, run, recipe(), resume=True)
    assert any("damaged checkpoint" in str(event) and str(newest) in str(event) for event in events)
    assert differing_weights(run, straight) == []


def test_a_full_disk_is_named_and_the_run_resumed_once_there_is_room(prepared: PreparedSet, straight: Path) -> None:
    disk = prepared.path.parent / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.getuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(StageError, match=r"(?i)no space left.*free space there, then resume with"):
            train(prepared, disk / "run", recipe(max_failures=0))
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        train(prepared, disk / "run", recipe(), resume=True)
        assert differing_weights(disk / "run", straight) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
