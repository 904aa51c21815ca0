"""A run begins in a new directory, and goes on only with the same data and recipe."""

from pathlib import Path

import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import parse_recipe
from ray_recsys.core.training.resume import begin_run, can_resume
from ray_recsys.core.training.run import RunStart
from ray_recsys.errors import ArtifactError
from tests.unit.test_run import make_run


def start(fingerprint: str = "abc", **sections: object) -> RunStart:
    recipe = parse_recipe({"seed": 7, **sections}, "test")
    return RunStart(num_users=7, num_items=11, input_fingerprint=fingerprint, recipe=recipe)


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"another directory$"):
        begin_run(tmp_path, start())
    begin_run(tmp_path / "run", start())
    with pytest.raises(ArtifactError, match="--resume"):
        begin_run(tmp_path / "run", start())


def test_resume_needs_the_same_data_and_recipe(tmp_path: Path) -> None:
    begin_run(tmp_path / "run", start())
    assert can_resume(tmp_path / "run", start())
    assert can_resume(tmp_path / "run", start(cluster={"num_workers": 8}, serve={"port": 1}))
    with pytest.raises(ArtifactError, match="fingerprint abc, now xyz"):
        can_resume(tmp_path / "run", start("xyz"))
    with pytest.raises(ArtifactError, match=r"train\.epochs = 20, now 3"):
        can_resume(tmp_path / "run", start(train={"epochs": 3}))
    with pytest.raises(ArtifactError, match=r"seed = 7, now 8"):
        can_resume(tmp_path / "run", start().model_copy(update={"recipe": Recipe(seed=8)}))


def test_a_finished_run_is_not_resumed_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert not can_resume(tmp_path / "run", start())
    with pytest.raises(ArtifactError, match="not a run"):
        can_resume(tmp_path / "nothing", start())
