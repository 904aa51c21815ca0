"""Prepared sets, runs, leases and registries in a bucket, without Ray: what differs from a local disk."""

import json
import time
from pathlib import Path

import pytest

from ray_recsys.config.files import parse_recipe
from ray_recsys.core.executor import SerialExecutor
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.preparing.pipeline import prepare
from ray_recsys.core.recommending.registry import CURRENT, Registry
from ray_recsys.core.training import lease
from ray_recsys.core.training.lease import LEASE, leased
from ray_recsys.core.training.run import Run, can_resume, is_unfinished, start_of, start_run
from ray_recsys.core.workflows.fit import fit
from ray_recsys.core.workflows.publish import publish
from ray_recsys.core.workflows.recommend import recommend
from ray_recsys.core.workflows.trained_model import TrainedModel
from ray_recsys.errors import ArtifactError, ConflictError, IntegrityError, RegistryError
from ray_recsys.serving.bundles import usable_version
from ray_recsys.storage.cache import DIRECTORY
from ray_recsys.storage.files import delete_file, is_file, list_tree, read_bytes, read_text, write_bytes
from ray_recsys.storage.location import Location
from tests.bundles import make_bundle, publish_bundle
from tests.factories import make_prepared_set, write_log

EXECUTOR = SerialExecutor()
RECIPE = parse_recipe({"model": {"name": "popularity"}, "prepare": {"num_partitions": 2}}, "test")


@pytest.fixture
def log(tmp_path: Path) -> str:
    write_log(tmp_path / "log.parquet")
    return str(tmp_path / "log.parquet")


def test_a_set_in_a_bucket_equals_one_on_disk(log: str, bucket: Location, tmp_path: Path) -> None:
    local = prepare([log], tmp_path / "set", RECIPE, EXECUTOR)
    remote = prepare([log], bucket / "set", RECIPE, EXECUTOR)
    assert remote == local.model_copy(update={"created_at": remote.created_at})
    ours, theirs = PreparedSet.open(tmp_path / "set"), PreparedSet.open(bucket / "set")
    assert theirs.files == ours.files
    assert theirs.read_items() == ours.read_items()
    assert theirs.read_columns(1, ["user_id", "item_idx"]) == ours.read_columns(1, ["user_id", "item_idx"])
    other = parse_recipe({"prepare": {"num_partitions": 3}}, "test")
    with pytest.raises(ArtifactError, match="different prepared set"):
        prepare([log], bucket / "set", other, EXECUTOR)
    prepare([log], bucket / "set", other, EXECUTOR, overwrite=True)
    assert len(PreparedSet.open(bucket / "set").manifest.partitions) == 3
    assert len([name for name in list_tree(bucket / "set") if name.endswith("items.parquet")]) == 1


def test_a_damaged_part_is_refused_by_whoever_reads_it(log: str, bucket: Location) -> None:
    prepare([log], bucket / "set", RECIPE, EXECUTOR)
    prepared = PreparedSet.open(bucket / "set")
    part = prepared.location / prepared.parts / prepared.manifest.partitions[0].file
    write_bytes(part, read_bytes(part)[:-1] + b"?")
    prepared.read_user_ids(1)
    with pytest.raises(IntegrityError, match=f"{part} was truncated or changed"):
        prepared.read_user_ids(0)


def test_a_run_in_a_bucket_starts_finishes_and_is_refused_where_it_is_damaged(
    log: str, bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([log], bucket / "set", RECIPE, EXECUTOR)
    prepared, run = PreparedSet.open(bucket / "set"), bucket / "run"
    start_run(run, start_of(prepared, RECIPE))
    assert is_unfinished(run)
    with pytest.raises(ArtifactError, match="--resume"):
        start_run(run, start_of(prepared, RECIPE))
    result = fit(prepared, run, RECIPE, EXECUTOR, resume=True)
    assert result.run == run
    assert not can_resume(run, start_of(prepared, RECIPE))
    assert set(Run.open(run).files) == {"started.json", "recipe.toml", "model/model.json", "model/model.safetensors"}
    assert TrainedModel.open(run).load().num_items == prepared.manifest.num_items
    write_bytes(run / "model" / "model.json", b"{}")
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "another node"))
    with pytest.raises(IntegrityError, match=r"model\.json"):
        Run.open(run).load_model()


def test_a_lease_keeps_others_out_until_it_ends(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bucket / "run"
    monkeypatch.setattr(lease, "_LEASE_S", 2.0)
    with leased(run):
        time.sleep(2.5)  # renewed meanwhile
        with pytest.raises(ArtifactError, match=f"{run} is in use by process"), leased(run):
            pytest.fail("two hold it")
    assert not is_file(run / LEASE)
    elsewhere = {"owner": "process 1 on other", "host": "other", "pid": 1, "until": time.time() + 60}
    write_bytes(run / LEASE, json.dumps(elsewhere).encode())
    with pytest.raises(ArtifactError, match=r"process 1 on other \(for another [56]\d s"), leased(run):
        pytest.fail("two hold it")
    write_bytes(run / LEASE, json.dumps({**elsewhere, "until": time.time() - 1}).encode())
    with leased(run):
        pass


def test_a_lease_of_a_killed_process_of_this_machine_is_free(bucket: Location) -> None:
    gone = json.loads(lease._lease()) | {"pid": 2**22 + 1}
    write_bytes(bucket / "run" / LEASE, json.dumps(gone).encode())
    with leased(bucket / "run"):
        assert json.loads(read_text(bucket / "run" / LEASE))["pid"] != gone["pid"]


def test_a_process_that_lost_its_lease_is_told(bucket: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LEASE_S", 0.4)
    held = leased(bucket / "run")
    held.__enter__()
    write_bytes(bucket / "run" / LEASE, b"{}")
    time.sleep(0.6)
    with pytest.raises(ConflictError, match=LEASE):
        held.__exit__(None, None, None)


def test_a_registry_in_a_bucket(bucket: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, home = make_prepared_set(tmp_path / "set"), Registry(bucket / "registry")
    with pytest.raises(RegistryError, match="has no live bundle"):
        home.current()
    versions = [publish_bundle(home.location, prepared, seed=seed) for seed in range(3)]
    assert home.versions() == sorted(versions)
    assert (home.current(), home.good()) == (versions[2], versions[::-1])
    assert home.manifest(versions[2]).parent == versions[1]
    assert home.rollback() == versions[1] == usable_version(home.location)
    opened = home.open()
    assert home.prune(1) == ([name for name in sorted(versions) if name not in home.versions()], [])
    assert versions[1] in home.versions()
    assert opened.seen.num_users == home.open(versions[1]).seen.num_users
    write_bytes(home.location / versions[1] / "seen_items.npy", b"damaged")
    assert home.open().version == versions[1]  # from the cache of this node
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "another node"))
    with pytest.raises(IntegrityError, match="seen_items"):
        home.open()


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_the_second_of_two_publishers_is_told(kind: str, bucket: Location, tmp_path: Path) -> None:
    prepared = make_prepared_set(tmp_path / "set")
    home = Registry((Location.of(tmp_path) if kind == "local" else bucket) / "registry")
    first = publish_bundle(home.location, prepared)
    seen_by_both = home.pointer()
    second = publish_bundle(home.location, prepared, seed=1)
    with home.staging() as staging:
        version = make_bundle(staging / "bundle", prepared, seed=2, parent=first)
        with pytest.raises(ConflictError, match=f"{second} went live meanwhile, {version} did not"):
            home.publish(staging / "bundle", seen_by_both)
    assert home.current() == second
    assert version not in home.good()
    assert home.rollback(version) == version  # it is there, and may be made live


def test_a_version_without_a_manifest_is_not_there(bucket: Location) -> None:
    home = Registry(bucket / "registry")
    version = "20261124T050102Z-1f0c9a3e"
    write_bytes(home.location / version / "users.arrow", b"1")
    assert home.versions() == []
    write_bytes(home.location / CURRENT, version.encode())
    with pytest.raises(RegistryError, match=f"names version '{version}', which registry"):
        home.current()


def test_lists_in_a_bucket_end_with_a_mark(log: str, bucket: Location) -> None:
    prepare([log], bucket / "set", RECIPE, EXECUTOR)
    fit(PreparedSet.open(bucket / "set"), bucket / "run", RECIPE, EXECUTOR)
    published = publish(bucket / "run", bucket / "set", bucket / "registry", RECIPE.bundle, EXECUTOR)
    result = recommend(published.path, bucket / "lists", EXECUTOR, num_candidates=20)
    assert result.num_users == 60
    assert list_tree(bucket / "lists") == ["_SUCCESS", "_job.json", "part-00000.parquet"]
    delete_file(bucket / "lists" / "_SUCCESS")
    again = recommend(published.path, bucket / "lists", EXECUTOR, num_candidates=20)
    assert (again.num_parts, again.num_kept_parts) == (1, 1)
    assert is_file(bucket / "lists" / "_SUCCESS")
    with pytest.raises(ArtifactError, match=r"another job \(num_candidates: 20, now 30\)"):
        recommend(published.path, bucket / "lists", EXECUTOR, num_candidates=30)
