"""What a task cannot do reaches the caller as an error of the package, with the stage, the file and the remedy."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import ray
import ray.data

from ray_recsys.config import ClusterRecipe
from ray_recsys.distributed.executor import RayExecutor
from ray_recsys.distributed.resources import require_cpu
from ray_recsys.errors import ClusterError, DataError, StageError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
EXECUTOR = RayExecutor("prepare", ClusterRecipe())


def test_results_come_back_for_every_number() -> None:
    assert sorted(EXECUTOR.map(lambda number: number**2, 5, stage="squaring")) == [0, 1, 4, 9, 16]
    assert list(EXECUTOR.map(lambda number: number, 0, stage="nothing")) == []


def test_a_stream_keeps_the_order_of_its_items() -> None:
    items = (text * 2 for text in "abcdefghijkl")
    assert list(EXECUTOR.stream(str.upper, items, stage="shouting")) == [text * 2 for text in "ABCDEFGHIJKL"]


def test_a_stream_raises_what_a_call_raised() -> None:
    def call(number: int) -> int:
        raise DataError(f"batch {number} is damaged")

    with pytest.raises(DataError, match="batch 7 is damaged"):
        list(EXECUTOR.stream(call, [7], stage="scoring"))


def test_an_error_of_the_package_is_the_users() -> None:
    def task(number: int) -> int:
        raise DataError(f"chunk {number} is damaged")

    with pytest.raises(DataError, match="chunk 0 is damaged"):
        list(EXECUTOR.map(task, 1, stage="reading"))


@pytest.mark.parametrize("writer", ["python", "arrow"])
def test_a_full_disk_is_a_stage_error(writer: str) -> None:
    def task(number: int) -> int:
        if writer == "python":
            return Path("/dev/full").write_bytes(bytes(100_000))
        with pa.OSFile("/dev/full", "wb") as file:
            file.write(bytes(100_000))
        return number

    with pytest.raises(StageError, match=r"(?s)writing to /out failed: .*No space left on device.*; free space there"):
        list(EXECUTOR.map(task, 1, stage="writing to /out"))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(StageError, match=r"reading failed: .*/nowhere/file"):
        list(EXECUTOR.map(lambda _: Path("/nowhere/file").read_bytes(), 1, stage="reading"))


class Crashing:
    """Reads files, one of which kills the process that reads it."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def describe(self, number: int) -> str:
        return f"file-{number}.csv"

    def __call__(self, number: int) -> int:
        if number == 3:
            with self._log.open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return number


def test_a_task_that_kills_its_process_each_time_is_named_after_a_few_tries(tmp_path: Path) -> None:
    done: list[int] = []
    with pytest.raises(StageError, match=r"reading: part 3 of 6, counted from 0 \(file-3\.csv\), ended its process"):
        done.extend(EXECUTOR.map(Crashing(tmp_path / "log"), 6, stage="reading"))
    assert 2 <= len((tmp_path / "log").read_text()) <= 8


class Passing:
    """Leaves (number, number + 1) twice; kills its process at one number, as often as a file of marks is missing."""

    def __init__(self, marks: Path, num_kills: int) -> None:
        self._marks, self._num_kills = marks, num_kills

    def __call__(self, number: int) -> Iterator[tuple[str, tuple[int, int]]]:
        yield f"{number}a", (number, number + 1)
        if number == 1 and len(list(self._marks.iterdir())) < self._num_kills:
            (self._marks / str(time.time_ns())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield f"{number}b", (number, number + 1)


def add(number: int, *values: int) -> tuple[int, tuple[()]]:
    if values[0] > 100:
        raise DataError(f"part {number} is damaged")
    return sum(values), ()


def test_parts_travel_between_tasks_and_outlive_a_lost_process(tmp_path: Path) -> None:
    left = EXECUTOR.run_generators(Passing(tmp_path, 1), [()] * 3, 2, stage="passing")
    assert [each.report for each in left] == ["0a", "0b", "1a", "1b", "2a", "2b"]
    sums = EXECUTOR.run(add, [[each.parts[1] for each in left], [left[2].parts[0], 5]], 0, stage="adding")
    assert [each.report for each in sums] == [12, 6]
    with pytest.raises(DataError, match="part 1 is damaged"):
        EXECUTOR.run(add, [[1], [101]], 0, stage="adding")


def test_a_part_that_kills_its_process_each_time_is_named_after_a_few_tries(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"passing: part 1, counted from 0 \(file-1\), ended its process 4 times"):
        EXECUTOR.run_generators(Passing(tmp_path, 99), [()] * 3, 2, stage="passing", describe=lambda n: f"file-{n}")
    assert len(list(tmp_path.iterdir())) == 4


def test_a_task_whose_process_is_lost_once_is_retried(tmp_path: Path) -> None:
    def task(number: int) -> int:
        if number == 1 and not (tmp_path / "lost").exists():
            (tmp_path / "lost").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert sorted(EXECUTOR.map(task, 3, stage="reading")) == [0, 1, 2]


def test_a_task_may_take_longer_than_the_contexts_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)

    def task(number: int) -> int:
        time.sleep(2)
        return number

    assert list(EXECUTOR.map(task, 1, stage="waiting")) == [0]


def test_a_full_cluster_is_refused_at_once() -> None:
    num_cpus = ray.cluster_resources()["CPU"]
    group = ray.util.placement_group([{"CPU": num_cpus}])
    ray.get(group.ready(), timeout=30)
    try:
        with pytest.raises(ClusterError, match=rf"prepare needs 1 CPU, .* has free 0 of {num_cpus:g}"):
            list(EXECUTOR.map(lambda number: number, 1, stage="nothing"))
    finally:
        ray.util.remove_placement_group(group)
    require_cpu("prepare", ClusterRecipe())
