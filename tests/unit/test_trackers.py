"""Trackers record what a training reports; one that fails or hangs warns and changes nothing else."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event as TensorBoardEvent

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.training.run import RunStart, start_run
from ray_recsys.progress import EpochFinished, Event, Warned
from ray_recsys.trackers import tracker as trackers
from ray_recsys.trackers.mlflow import MLflowTracker
from ray_recsys.trackers.tracker import Background, Tracking, tag_published, tracked


def epoch(number: int, ndcg: float, stage: str = "train") -> EpochFinished:
    metrics = {"NDCG@10": ndcg} if stage == "train" else {}
    return EpochFinished(number, 3, 1 / number, 100.0, "NDCG@10" if metrics else None, metrics, stage=stage)


def make_run(path: Path, **track: object) -> Recipe:
    recipe = parse_recipe({"track": track, "train": {"learning_rate": 0.02}}, "test")
    start_run(path, RunStart(num_users=3, num_items=4, input_fingerprint="abc", recipe=recipe))
    return recipe


def read_events(directory: Path) -> list[TensorBoardEvent]:
    """Returns the events of all files, oldest file first: records of length, checksum, content and checksum."""
    events = []
    for file in sorted(directory.glob("events.*"), key=lambda file: file.stat().st_mtime_ns):
        content, start = file.read_bytes(), 0
        while start < len(content):
            length = int.from_bytes(content[start : start + 8], "little")
            events.append(TensorBoardEvent.FromString(content[start + 12 : start + 12 + length]))
            start += 16 + length
    return events


def scalars(directory: Path) -> list[tuple[str, int, float]]:
    """Returns what TensorBoard shows: a start of a session hides all that came before from its step on."""
    shown: list[tuple[str, int, float]] = []
    for event in read_events(directory):
        if event.HasField("session_log") and event.step:
            shown = [entry for entry in shown if entry[1] < event.step]
        for value in event.summary.value:
            if value.HasField("simple_value"):
                shown.append((value.tag, event.step, round(value.simple_value, 4)))
    return shown


def test_tensorboard_has_each_epoch_once_though_two_were_trained_again(tmp_path: Path) -> None:
    recipe = make_run(tmp_path / "run")
    seen: list[Event] = []
    with tracked(tmp_path / "run", recipe, seen.append) as tracking:
        for number, ndcg in ((1, 0.1), (2, 0.2), (2, 0.25)):  # a worker was lost after the second
            tracking(epoch(number, ndcg))
        tracking("a line")
        tracking.finish({"NDCG@10": 0.25})
    with tracked(tmp_path / "run", recipe, seen.append) as tracking:  # --resume, after the driver was lost
        tracking(epoch(2, 0.26))
        tracking(epoch(3, 0.3))
        tracking(epoch(1, 0.0, "refit"))
    assert [event for event in seen if isinstance(event, Warned)] == []
    assert [str(event) for event in seen].count("a line") == 1
    found = scalars(tmp_path / "run/tensorboard/train")
    values = [entry[1:] for entry in found if entry[0] == "NDCG_at_10"]
    assert values == [(1, 0.1), (2, 0.26), (3, 0.3)]
    assert [entry[1:] for entry in found if entry[0] == "loss"] == [(1, 1.0), (2, 0.5), (3, 0.3333)]
    assert scalars(tmp_path / "run/tensorboard/refit") == [("loss", 1, 1.0), ("samples_per_s", 1, 100.0)]
    assert "learning_rate = 0.02" in str(read_events(tmp_path / "run/tensorboard/train"))


def test_tensorboard_can_be_switched_off(tmp_path: Path) -> None:
    recipe = make_run(tmp_path / "run", tensorboard=False)
    with tracked(tmp_path / "run", recipe, lambda _: None) as tracking:
        tracking(epoch(1, 0.1))
    assert not (tmp_path / "run/tensorboard").exists()


def mlflow_run(path: Path) -> Any:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("films")
    (found,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(found.info.run_id, "NDCG_at_10")
    return found, [(metric.step, metric.value) for metric in history]


@pytest.mark.filterwarnings("ignore")  # MLflow's own
def test_mlflow_has_recipe_epochs_and_bundle_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe, seen = make_run(tmp_path / "run", mlflow=True, tensorboard=False, experiment="films"), list[Event]()
    with tracked(tmp_path / "run", recipe, seen.append) as tracking:
        tracking(epoch(1, 0.1))  # and then an error: nothing says that training is done
    assert mlflow_run(tmp_path)[0].info.status == "FAILED"
    with tracked(tmp_path / "run", recipe, seen.append) as tracking:
        tracking(epoch(2, 0.2))
        tracking.finish({"NDCG@10": 0.2})
    tag_published(tmp_path / "run", "20261124T050102Z-1f0c9a3e", seen.append)
    assert [event for event in seen if isinstance(event, Warned)] == []
    found, history = mlflow_run(tmp_path)
    assert history == [(1, 0.1), (2, 0.2)]
    assert found.info.status == "FINISHED"
    assert found.data.params["train.learning_rate"] == "0.02"
    assert found.data.metrics["best_NDCG_at_10"] == 0.2
    assert found.data.tags["bundle_version"] == "20261124T050102Z-1f0c9a3e"
    assert found.data.tags["data_fingerprint"] == "abc"


def test_a_run_without_a_record_is_published_without_one(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    tag_published(tmp_path / "run", "version", lambda event: pytest.fail(str(event)))


class Failing:
    """Records the first epoch, then has no room."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def log_epoch(self, event: EpochFinished) -> None:
        if event.epoch == 2:
            raise OSError(28, "No space left on device")
        self.epochs.append(event.epoch)

    def close(self, metrics: Mapping[str, float] | None) -> None:
        pytest.fail(f"closed with {metrics}")


def test_a_tracker_that_fails_warns_once_and_the_others_go_on() -> None:
    failing, seen = Failing(), list[Event]()
    recorded: list[int] = []

    class Whole(Failing):
        def log_epoch(self, event: EpochFinished) -> None:
            recorded.append(event.epoch)

        def close(self, metrics: Mapping[str, float] | None) -> None:
            recorded.append(-1 if metrics is None else 0)

    def background(name: str, make: Callable[[], Any]) -> Background[trackers.Tracker]:
        return Background(name, make, seen.append)

    def missing() -> Failing:
        raise ImportError("no module")

    parts = [background("full", lambda: failing), background("whole", Whole), background("missing", missing)]
    tracking = Tracking(parts, seen.append)
    for number in (1, 2, 3):
        tracking(epoch(number, 0.1))
    tracking.finish({})
    tracking.close()
    warnings = sorted(str(event) for event in seen if isinstance(event, Warned))
    assert warnings == [
        "warning: full does not record this run: OSError: [Errno 28] No space left on device",
        "warning: missing does not record this run: ImportError: no module",
    ]
    assert (failing.epochs, recorded) == ([1], [1, 2, 3, 0])


def test_a_tracker_that_hangs_holds_nothing_up() -> None:
    end, seen = threading.Event(), list[Event]()

    def wait(event: threading.Event) -> None:
        event.wait(60)

    recorder = Background("slow", lambda: end, seen.append)
    recorder.call(wait)
    recorder.close(timeout_s=0.05)
    end.set()
    assert [str(event) for event in seen] == [
        "warning: slow has not answered for 0.05 s: its record is not complete",
    ]


def test_without_mlflow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(f"No module named {name!r}")

    recipe, seen = make_run(tmp_path / "run", mlflow=True, tensorboard=False), list[Event]()
    monkeypatch.setattr("ray_recsys.trackers.mlflow.importlib.import_module", missing)
    with tracked(tmp_path / "run", recipe, seen.append) as tracking:
        tracking(epoch(1, 0.1))
    (warning,) = (str(event) for event in seen if isinstance(event, Warned))
    assert "pip install 'ray-recsys[mlflow]'" in warning
    assert not MLflowTracker.has_record(tmp_path / "run")
