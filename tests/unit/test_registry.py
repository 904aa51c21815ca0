"""Rolling back, pruning and the quality gate: what is live, was live or is in use is never lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ray_recsys.cli import main
from ray_recsys.config import BundleRecipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.workflows.publish import compare_with_live
from ray_recsys.errors import ArtifactError, RegistryError
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return make_prepared_set(tmp_path / "prepared")


@pytest.fixture
def registry(tmp_path: Path, prepared: PreparedSet) -> Registry:
    """Four versions; the last is live."""
    for seed in range(4):
        publish_bundle(tmp_path / "registry", prepared, seed=seed)
    return Registry(tmp_path / "registry")


def test_rollbacks_walk_back_through_the_good_versions(registry: Registry) -> None:
    newest_first = registry.good()
    assert len(newest_first) == 4
    assert registry.current() == newest_first[0]
    assert registry.rollback() == newest_first[1] == registry.current()
    assert registry.good() == newest_first[1:]  # what was rolled back is not what a server falls back to
    assert registry.rollback() == newest_first[2]
    assert registry.rollback(newest_first[0]) == newest_first[0]  # by name, forward too
    with pytest.raises(RegistryError, match="live already"):
        registry.rollback(newest_first[0])
    with pytest.raises(RegistryError, match="does not have"):
        registry.rollback("20260101T000000Z-00000000")


def test_a_damaged_version_is_not_rolled_back_to(registry: Registry) -> None:
    live, previous, *_ = registry.good()
    (Path(registry.locate(previous)) / "recall_vectors.npy").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"recall_vectors\.npy"):
        registry.rollback()
    assert registry.current() == live


def test_the_only_version_is_not_rolled_back(tmp_path: Path, prepared: PreparedSet) -> None:
    publish_bundle(tmp_path / "one", prepared)
    with pytest.raises(RegistryError, match="no good version but the live one"):
        Registry(tmp_path / "one").rollback()


def test_prune_keeps_the_live_the_previous_and_what_is_in_use(registry: Registry) -> None:
    newest_first = registry.good()
    registry.rollback(newest_first[2])  # live is an old one; the previous good one is newest_first[1]
    hold = registry.hold(newest_first[3])
    removed, in_use = registry.prune(1)
    newest = registry.versions()[-1]
    assert in_use == ([newest_first[3]] if newest != newest_first[3] else [])
    assert {newest_first[2], newest_first[1], newest_first[3]} <= set(registry.versions())
    assert removed == [v for v in newest_first if v not in registry.versions()]
    hold.release()
    registry.prune(1)
    assert newest_first[3] in registry.versions() or newest != newest_first[3]
    assert registry.open().version == newest_first[2]


def test_a_process_that_dies_no_longer_holds_a_version(registry: Registry) -> None:
    oldest = registry.good()[-1]
    code = (
        "import sys, pathlib; from ray_recsys.core.recommending.registry import Registry;"
        "hold = Registry(pathlib.Path(sys.argv[1])).hold(sys.argv[2]); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(registry.path), oldest], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert registry._is_held(oldest)
        holder.kill()
    assert not registry._is_held(oldest)


def test_the_gate_compares_only_what_was_measured_on_the_same_data(registry: Registry, prepared: PreparedSet) -> None:
    recipe, fingerprint = BundleRecipe(), prepared.manifest.input_fingerprint  # live has NDCG@10 0.25
    assert compare_with_live(registry, {"NDCG@10": 0.24}, fingerprint, recipe).is_worse
    assert not compare_with_live(registry, {"NDCG@10": 0.2451}, fingerprint, recipe).is_worse
    half = recipe.model_copy(update={"min_ratio": 0.5})
    assert not compare_with_live(registry, {"NDCG@10": 0.13}, fingerprint, half).is_worse
    for metrics, data in (({"NDCG@10": 0.01}, "other"), ({"Hit@10": 0.01}, fingerprint)):
        skipped = compare_with_live(registry, metrics, data, recipe)
        assert not skipped.is_worse
        assert skipped.skipped


def test_a_damaged_live_version_does_not_stop_its_replacement(registry: Registry, prepared: PreparedSet) -> None:
    (Path(registry.locate(registry.current())) / "manifest.json").write_text("{")
    gate = compare_with_live(registry, {"NDCG@10": 0.01}, prepared.manifest.input_fingerprint, BundleRecipe())
    assert not gate.is_worse
    assert "cannot be read" in gate.describe()
    (registry.path / "CURRENT").write_text("20260101T000000Z-00000000")
    assert registry.live() is None
    assert publish_bundle(registry.path, prepared, seed=9) == registry.current()


def test_the_commands_list_show_roll_back_and_prune(registry: Registry, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> dict[str, object]:
        assert main(["registry", *arguments, "--registry", str(registry.path), "--json"]) == 0
        answer: dict[str, object] = json.loads(capfd.readouterr().out)
        return answer

    newest_first = registry.good()
    listed = run("list")["versions"]
    assert isinstance(listed, list)
    states = {one["version"]: (one["state"], one["metric"]) for one in listed}
    assert states == {name: ("live" if name == newest_first[0] else "good", 0.25) for name in newest_first}
    assert run("show")["version"] == newest_first[0]
    assert run("show", newest_first[1])["parent"] == newest_first[2]
    assert run("rollback") == {"version": newest_first[1], "replaced": newest_first[0]}
    removed = run("prune", "--keep", "1")["removed"]
    assert isinstance(removed, list)
    assert not set(removed) & {newest_first[1], newest_first[2]}
    assert os.path.isdir(registry.path / newest_first[1])  # noqa: PTH112
    assert main(["registry", "rollback", "--registry", str(registry.path), "--to", "nothing"]) == 2
