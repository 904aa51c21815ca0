"""A run round-trips, and a damaged or unfinished one is refused by name."""

import json
from pathlib import Path

import pytest
import torch

from ray_recsys.config import Recipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.artifact import write_manifest
from ray_recsys.core.models.model_files import load_model, save_model
from ray_recsys.core.training.run import BEST, LAST, SCHEMA_VERSION, Run, RunStart, finish_run, start_run
from ray_recsys.errors import ArtifactError, IntegrityError, SchemaVersionError
from tests.unit.test_neumf import ITEMS, USERS, make


def make_run(path: Path) -> Run:
    start_run(path, RunStart(num_users=USERS, num_items=ITEMS, input_fingerprint="abc", recipe=Recipe(seed=7)))
    for name in (BEST, LAST):
        (path / name).mkdir()
        save_model(make(), path / name)
    (path / "ray").mkdir()
    (path / "ray" / "left").write_text("no part of the run")
    finish_run(path, num_epochs=4, best_epoch=3, metrics={"NDCG@10": 0.25})
    return Run.open(path)


def test_round_trip(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.verify()
    assert (run.manifest.best_epoch, run.manifest.metrics) == (3, {"NDCG@10": 0.25})
    assert load_recipe(run.path / "recipe.toml") == run.manifest.recipe == Recipe(seed=7)
    loaded, expected = run.load_model().state_dict(), make().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert not any(name.startswith("ray/") for name in run.files)


@pytest.mark.parametrize("name", ["best/model.safetensors", "best/model.json"])
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
    save_model(make(), tmp_path)
    shape = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(shape | {"num_items": ITEMS + 1}))
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        load_model(tmp_path)
