"""Ray Tune for real: a small search stops poor trials early and writes a recipe that is ready to train."""

import contextlib
import csv
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import dump_recipe, load_recipe, parse_recipe
from ray_recsys.distributed.tuning import tune
from ray_recsys.errors import ArtifactError, DataError, InputError, IntegrityError, RecipeError, StageError
from ray_recsys.progress import Event
from tests.factories import change_a_byte, make_prepared_set, rewrite_partitions

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


def test_a_search_stops_poor_trials_early_and_writes_the_best_recipe(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared = make_prepared_set(tmp_path / "data", num_users=200)
    epochs, num_trials = 8, 4
    recipe = parse_recipe(
        {
            "model": {"mlp_layers": [8, 4], "init_std": 0.1},
            "train": {"epochs": epochs, "batch_size": 64, "early_stopping_epochs": "none"},
            "tune": {
                "num_trials": num_trials,
                "grace_epochs": 1,
                "space": {
                    "train": {"learning_rate": {"log_uniform": [1e-6, 0.1]}},
                    "model.embedding_dim": {"choice": [4]},
                },
            },
        },
        "test",
    )
    lines: list[Event] = []
    result = tune(prepared.path, tmp_path / "tuned", recipe, report=lines.append)

    assert capfd.readouterr().out == ""  # Tune's own tables are suppressed
    assert result.num_trials == len(result.trials) == num_trials
    assert all(trial.error is None and 1 <= trial.num_epochs <= epochs for trial in result.trials)
    # Without early stopping of epochs only the schedule can end a trial: without ASHA each would run all epochs.
    assert sum(trial.num_epochs for trial in result.trials) < num_trials * epochs
    values = [trial.metrics["NDCG@10"] for trial in result.trials]
    assert values == sorted(values, reverse=True)
    best = load_recipe(result.best_recipe)
    assert best.train.learning_rate == result.best.values["train.learning_rate"]
    assert best.model.model_dump(include={"embedding_dim", "mlp_layers"}) == {"embedding_dim": 4, "mlp_layers": (8, 4)}
    rows = list(csv.DictReader((tmp_path / "tuned" / "trials.csv").read_text().splitlines()))
    assert [float(row["NDCG@10"]) for row in rows] == values
    assert sum(str(line).startswith("trial ") for line in lines) == num_trials
    with pytest.raises(ArtifactError, match="exists already"):
        tune(prepared.path, tmp_path / "tuned", recipe)


def test_a_space_that_no_recipe_accepts_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "data")
    for space, message in (
        ({"train.learning_rat": {"choice": [0.1]}}, "did you mean learning_rate"),
        ({"train.epochs": {"choice": [5, 0]}}, r"train\.epochs = 0: must be a whole number > 0"),
        ({"model.name": {"choice": ["nothing"]}}, "must be one of"),
    ):
        with pytest.raises(RecipeError, match=message):
            tune(data.path, tmp_path / "tuned", parse_recipe({"tune": {"space": space}}, "test"))
    with pytest.raises(RecipeError, match="'popularity' has nothing to search"):
        tune(data.path, tmp_path / "tuned", parse_recipe({"model": {"name": "popularity"}}, "test"))
    assert not (tmp_path / "tuned").exists()


def test_data_with_a_changed_byte_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "data")
    change_a_byte(data.path / "items.parquet")
    with pytest.raises(IntegrityError, match=r"items\.parquet"):
        tune(data.path, tmp_path / "tuned", Recipe())
    assert not (tmp_path / "tuned").exists()


def test_data_without_validation_have_nothing_to_choose_by(tmp_path: Path) -> None:
    data = rewrite_partitions(make_prepared_set(tmp_path / "data"), lambda it: it, num_validation=0)
    with pytest.raises(DataError, match="has no validation interactions to choose by"):
        tune(data.path, tmp_path / "tuned", Recipe())
    assert not (tmp_path / "tuned").exists()


def test_a_search_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"tune\.search = 'tpe' needs Optuna .*pip install 'ray-recsys\[tune\]'"):
        tune(tmp_path, tmp_path / "tuned", parse_recipe({"tune": {"search": "tpe"}}, "test"))


def small_search(**tune_keys: object) -> Recipe:
    sections = {
        "model": {"embedding_dim": 4, "mlp_layers": [8, 4], "init_std": 0.1},
        "train": {"epochs": 6, "batch_size": 16, "early_stopping_epochs": "none"},
        "tune": {
            "num_trials": 4,
            "grace_epochs": 6,
            "max_concurrent_trials": 1,
            "space": {"train.learning_rate": {"log_uniform": [1e-3, 0.1]}},
            **tune_keys,
        },
    }
    return parse_recipe(sections, "test")


def test_a_search_whose_driver_was_killed_is_resumed(tmp_path: Path) -> None:
    data, output, file = (
        make_prepared_set(tmp_path / "data", num_users=300),
        tmp_path / "tuned",
        tmp_path / "recipe.toml",
    )
    file.write_text(dump_recipe(small_search()), encoding="utf8")
    command = [sys.executable, "-m", "ray_recsys.cli", "tune", "--data", str(data.path), "--output", str(output)]
    command += ["--recipe", str(file), "--address", "local"]
    num_ended = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr is not None
        for line in driver.stderr:
            num_ended += "] trial " in line
            if num_ended == 2:
                driver.kill()
                break
    assert num_ended == 2
    assert not (output / "best_recipe.toml").exists()
    with pytest.raises(ArtifactError, match="--resume"):
        tune(data.path, output, small_search())
    with pytest.raises(ArtifactError, match="another recipe"):
        tune(data.path, output, small_search(num_trials=5), resume=True)
    lines: list[str] = []
    result = tune(data.path, output, small_search(), resume=True, report=lambda event: lines.append(str(event)))
    assert result.num_trials == 4
    assert all(trial.error is None and trial.num_epochs == 6 == len(trial.curve) for trial in result.trials)
    assert len({trial.values["train.learning_rate"] for trial in result.trials}) == 4
    assert 1 <= sum(line.startswith("trial ") for line in lines) <= 3  # what had ended is not repeated
    assert sorted(path.name for path in output.iterdir()) == ["best_recipe.toml", "report.html", "trials.csv"]
    with pytest.raises(ArtifactError, match="no interrupted search"):
        tune(data.path, output, small_search(), resume=True)


def test_a_search_whose_trials_all_fail_leaves_nothing_that_refuses_the_next(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "data")
    diverging = small_search(num_trials=1, space={"train.learning_rate": {"choice": [1e30]}})
    with pytest.raises(StageError, match=r"no trial has a result.*diverged"):
        tune(data.path, tmp_path / "tuned", diverging)
    assert not (tmp_path / "tuned").exists()


def test_the_parzen_estimator_searches_too(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    data = make_prepared_set(tmp_path / "data")
    result = tune(data.path, tmp_path / "tuned", small_search(search="tpe", num_trials=2, max_concurrent_trials=2))
    assert result.num_trials == 2
    assert all(trial.error is None for trial in result.trials)
    assert all(1e-3 <= trial.values["train.learning_rate"] <= 0.1 for trial in result.trials)


def test_a_trial_of_two_workers_that_is_killed_begins_again(tmp_path: Path) -> None:
    data = make_prepared_set(tmp_path / "data", num_users=3000)  # epochs of a second: killed between them
    killed: list[int] = []
    lines: list[Event] = []

    def kill_the_trial() -> None:
        while not killed:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    results = list((tmp_path / "tuned/ray/tune").glob("*/result.json"))
                    if "ImplicitFunc" in " ".join(process.cmdline()) and any(path.stat().st_size for path in results):
                        process.kill()
                        killed.append(process.pid)
                        return
            time.sleep(0.01)

    thread = threading.Thread(target=kill_the_trial, daemon=True)
    thread.start()
    result = tune(data.path, tmp_path / "tuned", small_search(num_trials=1, workers_per_trial=2), report=lines.append)
    thread.join(1)
    assert len(killed) == 1
    assert sum("a trial was lost and restarts" in str(line) for line in lines) == 1
    (trial,) = result.trials
    assert trial.error is None
    assert trial.num_epochs == 6 == len(trial.curve)
