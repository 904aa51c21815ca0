"""A run round-trips, a damaged or unfinished one is refused by name, and only the same run is resumed."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe, parse_recipe
from ray_recsys.core.artifact import write_manifest
from ray_recsys.core.models.registry import load_model
from ray_recsys.core.training.lease import leased
from ray_recsys.core.training.run import (
    MODEL,
    SCHEMA_VERSION,
    Run,
    RunStart,
    can_resume,
    finish_run,
    start_run,
)
from ray_recsys.errors import ArtifactError, IntegrityError, SchemaVersionError
from tests.unit.test_neumf import ITEMS, USERS, make


def make_run(path: Path) -> Run:
    start_run(path, RunStart(num_users=USERS, num_items=ITEMS, input_fingerprint="abc", recipe=Recipe(seed=7)))
    (path / MODEL).mkdir()
    make().export().save(path / MODEL)
    (path / "ray").mkdir()
    (path / "ray" / "left").write_text("no part of the run")
    finish_run(path, num_epochs=4, best_epoch=3, metrics={"NDCG@10": 0.25})
    return Run.open(path)


def test_round_trip(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.verify()
    assert (run.manifest.best_epoch, run.manifest.metrics) == (3, {"NDCG@10": 0.25})
    assert load_recipe(run.path / "recipe.toml") == run.manifest.recipe == Recipe(seed=7)
    loaded, expected, everybody = run.load_model(), make().export(), np.arange(USERS)
    assert np.array_equal(loaded.scores(loaded.users(everybody)), expected.scores(expected.users(everybody)))
    assert not any(name.startswith("ray/") for name in run.files)


@pytest.mark.parametrize("name", ["model/model.safetensors", "model/model.json"])
def test_one_changed_byte_is_refused_by_name(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    content = bytearray((run.path / name).read_bytes())
    content[-3] ^= 1
    (run.path / name).write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match=name):
        run.load_model()
    (run.path / name).write_bytes(bytes(content[:-1]))
    with pytest.raises(IntegrityError, match=name):
        Run.open(run.path)


def test_unfinished_missing_and_other_versions_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    manifest = json.loads((run.path / "manifest.json").read_text())
    (run.path / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(SchemaVersionError, match="99"):
        Run.open(run.path)
    (run.path / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="--resume"):
        Run.open(run.path)
    with pytest.raises(ArtifactError, match="not a run"):
        Run.open(tmp_path / "nothing")


def test_recipe_key_that_has_gone_since_is_another_version(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    body = json.loads((run.path / "manifest.json").read_text())
    body["recipe"]["train"]["momentum"] = 0.9
    for name in ("kind", "schema_version", "files", "manifest_sha256"):
        del body[name]
    write_manifest(run.path, kind="run", schema_version=SCHEMA_VERSION, body=body, exclude=["ray"])
    with pytest.raises(SchemaVersionError, match=r"manifest\.json.*recipe\.train\.momentum"):
        Run.open(run.path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    make().export().save(tmp_path)
    shape = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(shape | {"num_items": ITEMS + 1}))
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_model(tmp_path)


def start(fingerprint: str = "abc", **sections: object) -> RunStart:
    recipe = parse_recipe({"seed": 7, **sections}, "test")
    return RunStart(num_users=7, num_items=11, input_fingerprint=fingerprint, recipe=recipe)


def test_an_existing_directory_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"another directory$"):
        start_run(tmp_path, start())
    start_run(tmp_path / "run", start())
    with pytest.raises(ArtifactError, match="--resume"):
        start_run(tmp_path / "run", start())


def test_resume_needs_the_same_data_and_recipe(tmp_path: Path) -> None:
    start_run(tmp_path / "run", start())
    assert can_resume(tmp_path / "run", start())
    assert can_resume(tmp_path / "run", start(cluster={"num_workers": 8}, serve={"port": 1}))
    assert can_resume(tmp_path / "run", start(train={"checkpoint_every_s": 5}))
    with pytest.raises(ArtifactError, match="fingerprint abc, now xyz"):
        can_resume(tmp_path / "run", start("xyz"))
    with pytest.raises(ArtifactError, match=r"train\.epochs = 20, now 3"):
        can_resume(tmp_path / "run", start(train={"epochs": 3}))
    with pytest.raises(ArtifactError, match=r"seed = 7, now 8"):
        can_resume(tmp_path / "run", start().model_copy(update={"recipe": Recipe(seed=8)}))
    with pytest.raises(ArtifactError, match=r"model\.name = neumf, now popularity"):
        can_resume(tmp_path / "run", start(model={"name": "popularity"}))


def hold(path: Path, is_held: Any, end: Any) -> None:
    with leased(path):
        is_held.set()
        end.wait(60)


def test_a_run_is_trained_by_one_process_at_a_time_and_a_killed_one_does_not_hold_it(tmp_path: Path) -> None:
    start_run(tmp_path / "run", start())
    spawn = multiprocessing.get_context("spawn")
    is_held, end = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=hold, args=(tmp_path / "run", is_held, end), daemon=True)
    holder.start()
    assert is_held.wait(60)
    with pytest.raises(ArtifactError, match=f"in use by process {holder.pid} on "), leased(tmp_path / "run"):
        pytest.fail("two hold it")
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(60)
    with leased(tmp_path / "run"):
        (tmp_path / "run" / MODEL).mkdir()
        make().export().save(tmp_path / "run" / MODEL)
        finish_run(tmp_path / "run", num_epochs=1, best_epoch=1, metrics={})
    assert ".lease" not in Run.open(tmp_path / "run").files
    assert not (tmp_path / "run/.lease").exists()


def test_a_finished_run_is_not_resumed_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    assert not can_resume(tmp_path / "run", start())
    with pytest.raises(ArtifactError, match="not a run"):
        can_resume(tmp_path / "nothing", start())
