"""The pipeline runs only what changed, resumes what was killed, and never replaces a better live model."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_recsys.config import ClusterRecipe, Recipe
from ray_recsys.config.files import load_recipe, parse_recipe
from ray_recsys.core.executor import Executor, SerialExecutor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.log_files import LogFile
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.training.lease import leased
from ray_recsys.core.training.run import Run, TrainResult, start_of, start_run
from ray_recsys.core.workflows.fit import fit
from ray_recsys.core.workflows.pipeline import Pipeline, PipelineResult
from ray_recsys.core.workflows.stage_records import CHEAP_BYTES, identify_files
from ray_recsys.errors import ArtifactError
from ray_recsys.progress import Reporter, silent
from ray_recsys.reports.pipeline_html import write_html
from ray_recsys.storage.location import Location

GOOD: dict[str, Any] = {"model": {"name": "item_knn"}}
WORSE: dict[str, Any] = {"model": {"name": "popularity"}}


class Killed(BaseException):
    """Stands for a process that was killed."""


class FitTrainer:
    """Fits models in this process; may be killed once its run, or that of the refit, has been started."""

    def __init__(self, *, is_killed: bool = False, is_refit_killed: bool = False) -> None:
        self.is_killed, self.is_refit_killed = is_killed, is_refit_killed
        self.resumed: list[bool] = []

    def train(
        self, data: Location, output: Location, recipe: Recipe, executor: Executor, *, resume: bool, report: Reporter
    ) -> TrainResult:
        return self._fit(data, output, recipe, executor, resume=resume, report=report, is_killed=self.is_killed)

    def refit(
        self,
        finished: Location,
        data: Location,
        output: Location,
        cluster: ClusterRecipe,
        executor: Executor,
        *,
        resume: bool,
        report: Reporter,
    ) -> TrainResult:
        assert cluster == ClusterRecipe()
        recipe = Run.open(finished).manifest.recipe
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"refit": True})})
        return self._fit(data, output, recipe, executor, resume=resume, report=report, is_killed=self.is_refit_killed)

    def _fit(
        self,
        data: Location,
        output: Location,
        recipe: Recipe,
        executor: Executor,
        *,
        resume: bool,
        report: Reporter,
        is_killed: bool,
    ) -> TrainResult:
        prepared = PreparedSet.open(data)
        self.resumed.append(resume)
        if is_killed:
            start_run(output, start_of(prepared, recipe))
            raise Killed
        return fit(prepared, output, recipe, executor, resume=resume, report=report)


Go = Callable[..., PipelineResult]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Users who like either the even or the odd items, and one item that everybody has."""
    rng = np.random.default_rng(1)
    lines = ["user_id,item_id,timestamp"]
    for user in range(80):
        likes = rng.permutation([*range(2 + user % 2, 30, 2)])[:8]
        lines += [f"u{user},i{item},{1_700_000_000 + time}" for time, item in enumerate([0, *likes])]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def go(tmp_path: Path, log: Path) -> Go:
    def run(recipe: dict[str, Any], trainer: FitTrainer | None = None, *, force: bool = False) -> PipelineResult:
        parsed = parse_recipe({**recipe, "prepare": {"num_partitions": 2, **recipe.get("prepare", {})}}, "test")
        output, registry = tmp_path / "out", tmp_path / "registry"
        pipeline = Pipeline(
            Location.of(output), Location.of(registry), parsed, SerialExecutor(), trainer or FitTrainer(), silent
        )
        return pipeline.run([str(log)], force=force)

    return run


def statuses(result: PipelineResult) -> dict[str, str]:
    return {record.stage: record.status for record in result.stages}


def everything(status: str) -> dict[str, str]:
    return dict.fromkeys(("prepare", "train", "evaluate", "publish"), status)


def test_a_second_run_skips_every_stage_and_its_report_is_the_same(tmp_path: Path, go: Go, log: Path) -> None:
    first = go(GOOD)
    assert statuses(first) == everything("ran")
    assert first.live == Registry(tmp_path / "registry").current()
    assert first.evaluation.models["ItemKNN"].metrics["NDCG@10"] > 0
    os.utime(log, ns=(1, 1))  # another time of modification, the same content
    again = go(GOOD)
    assert statuses(again) == everything("skipped")
    assert again.evaluation == first.evaluation
    assert [record.seconds for record in again.stages] == [record.seconds for record in first.stages]
    assert Registry(tmp_path / "registry").versions() == [first.live]
    assert load_recipe(tmp_path / "out" / "recipe.toml").model.name == "item_knn"


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        ({"evaluate": {"ks": [3]}}, ["evaluate"]),
        ({"bundle": {"num_neighbours": 7}}, ["publish"]),
        ({"model": {"name": "item_knn", "num_neighbours": 5}}, ["train", "evaluate", "publish"]),
        ({"split": {"method": "random_per_user"}}, ["prepare", "train", "evaluate", "publish"]),
        ({"cluster": {"num_workers": 7}, "serve": {"port": 1}}, []),
    ],
)
def test_a_changed_section_runs_the_stages_that_use_it(go: Go, change: dict[str, Any], runs: list[str]) -> None:
    go(GOOD)
    ran = statuses(go({**GOOD, **change}, force=True))
    assert [stage for stage, status in ran.items() if status == "ran"] == runs
    assert set(ran.values()) <= {"ran", "skipped"}


def test_a_longer_log_runs_everything_and_what_it_replaces_is_removed(tmp_path: Path, go: Go, log: Path) -> None:
    before = go(GOOD)
    with log.open("a") as file:
        file.write("u0,i29,1800000000\n")
    after = go(GOOD)
    assert statuses(after) == everything("ran")
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {after.prepared.name, after.run.name, "stages"}
    assert not Path(before.prepared).exists()
    assert Run.open(after.run).manifest.num_users == 80


def test_a_killed_training_is_resumed(go: Go) -> None:
    with pytest.raises(Killed):
        go(GOOD, FitTrainer(is_killed=True))
    trainer = FitTrainer()
    assert statuses(go(GOOD, trainer)) == everything("ran") | {"prepare": "skipped", "train": "resumed"}
    assert trainer.resumed == [True]


def test_a_training_killed_before_it_could_be_resumed_begins_anew(go: Go, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        go(GOOD, FitTrainer(is_killed=True))
    (run,) = (tmp_path / "out").glob("run-*")
    (run / "started.json").unlink()
    trainer = FitTrainer()
    assert statuses(go(GOOD, trainer))["train"] == "ran"
    assert trainer.resumed == [False]


def test_a_worse_model_leaves_the_old_bundle_live_until_it_is_forced(tmp_path: Path, go: Go) -> None:
    live = go(GOOD).live
    worse = go(WORSE)
    assert statuses(worse) == {"prepare": "skipped", "train": "ran", "evaluate": "ran", "publish": "refused"}
    assert worse.live == live == Registry(tmp_path / "registry").current()
    assert worse.refusal is not None
    # what the live model was made from is kept, and not published twice
    assert statuses(go(GOOD)) == everything("skipped") | {"evaluate": "ran"}
    assert worse.gate is not None
    assert f"the live version has {worse.gate.live:.4f}" in worse.refusal
    assert statuses(go(WORSE))["publish"] == "refused"
    forced = go(WORSE, force=True)
    assert forced.refusal is None
    assert forced.live != live


def test_a_rollback_is_not_undone_by_a_run_without_changes(tmp_path: Path, go: Go) -> None:
    first = go(GOOD).live
    second = go({**GOOD, "bundle": {"num_neighbours": 7}}).live
    assert first != second
    Registry(tmp_path / "registry").rollback()
    again = go({**GOOD, "bundle": {"num_neighbours": 7}})
    assert (statuses(again)["publish"], again.live) == ("skipped", first)


def test_a_refit_is_published_and_the_model_before_it_evaluated(go: Go, tmp_path: Path) -> None:
    result = go({**GOOD, "train": {"refit": True}})
    assert list(statuses(result)) == ["prepare", "train", "evaluate", "refit", "publish"]
    assert Run.open(result.run).manifest.refit
    assert Registry(tmp_path / "registry").open().manifest.refit
    assert set(statuses(go({**GOOD, "train": {"refit": True}})).values()) == {"skipped"}


def test_a_killed_refit_is_resumed(go: Go) -> None:
    recipe = {**GOOD, "train": {"refit": True}}
    with pytest.raises(Killed):
        go(recipe, FitTrainer(is_refit_killed=True))
    trainer = FitTrainer()
    ran = statuses(go(recipe, trainer))
    assert ran == everything("skipped") | {"refit": "resumed", "publish": "ran"}
    assert trainer.resumed == [True]


def test_two_pipelines_do_not_share_an_output(go: Go, tmp_path: Path) -> None:
    with leased(tmp_path / "out"), pytest.raises(ArtifactError, match="in use by process"):
        go(GOOD)
    assert statuses(go(GOOD)) == everything("ran")


def test_reports_hold_what_happened(go: Go, tmp_path: Path) -> None:
    go(GOOD)
    result = go(WORSE)
    write_html(result, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<td>refused</td>" in page
    assert f"{result.evaluation.models['Popularity'].metrics['NDCG@10']:.4f}" in page
    assert PipelineResult.model_validate_json(result.model_dump_json()) == result
    record = json.loads((tmp_path / "out" / "stages" / "prepare.json").read_text())
    assert record["inputs"]["log"][0]["bytes"] == (tmp_path / "log.csv").stat().st_size
    assert len(record["inputs"]["log"][0]["sha256"]) == 64


@pytest.mark.parametrize(
    ("uri", "num_bytes", "by"), [("big.csv", CHEAP_BYTES + 1, "modified_ns"), ("s3://b/x.csv", 3, "modified_ns")]
)
def test_files_that_are_dear_to_read_are_identified_by_their_time(uri: str, num_bytes: int, by: str) -> None:
    (identity,) = identify_files([LogFile(uri, "csv", None, num_bytes, "7")])
    assert identity[by] == "7"
    assert "sha256" not in identity
