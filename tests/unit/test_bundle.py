from pathlib import Path

import numpy as np
import pytest

from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.registry import CURRENT, Registry
from ray_recsys.errors import ArtifactError, IntegrityError, RegistryError
from tests.bundles import make_bundle, publish_bundle
from tests.factories import make_prepared_set


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return make_prepared_set(tmp_path / "prepared")


def test_a_bundle_knows_what_every_user_has_seen_in_order_of_time(tmp_path: Path, prepared: PreparedSet) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    bundle = Bundle.open(tmp_path / "bundle")
    for partition in range(len(prepared.manifest.partitions)):
        histories = prepared.read_partition(partition)
        ids = prepared.read_user_ids(partition).to_pylist()
        for row, user_id in enumerate(ids):
            parts = (histories.training, histories.validation, histories.test)
            expected = np.concatenate([p.item_idx[p.offsets[row] : p.offsets[row + 1]] for p in parts])
            user_idx = bundle.users.find(user_id)
            assert user_idx == histories.first_user_idx + row
            assert bundle.users.id_of(user_idx) == user_id
            np.testing.assert_array_equal(bundle.seen.of(user_idx), expected)
    assert bundle.manifest.num_interactions == prepared.manifest.rows_kept


def test_every_file_of_a_bundle_is_checked_and_named(tmp_path: Path, prepared: PreparedSet) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    files = [path for path in (tmp_path / "bundle").rglob("*") if path.is_file()]
    names = sorted(str(path.relative_to(tmp_path / "bundle")) for path in files)
    assert "recall_vectors.npy" in names
    for name in names:
        path = tmp_path / "bundle" / name
        before = path.read_bytes()
        changed = bytearray(before)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=name):
            Bundle.open(tmp_path / "bundle")
        path.write_bytes(before[: len(before) // 2])
        with pytest.raises(ArtifactError, match=name):
            Bundle.open(tmp_path / "bundle")
        path.write_bytes(before)
    Bundle.open(tmp_path / "bundle")


def test_no_file_of_a_bundle_is_a_pickle(tmp_path: Path, prepared: PreparedSet) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    for path in (tmp_path / "bundle").rglob("*.*"):
        assert not path.read_bytes().startswith(b"\x80"), path.name


def test_a_published_bundle_is_live_and_names_its_parent(tmp_path: Path, prepared: PreparedSet) -> None:
    registry = Registry(tmp_path / "registry")
    first = publish_bundle(registry.path, prepared, seed=1)
    second = publish_bundle(registry.path, prepared, seed=2)
    assert registry.versions() == sorted([first, second])
    assert registry.current() == second
    assert registry.open().manifest.parent == first
    registry.set_current(first)
    assert registry.current() == first
    assert not list(registry.path.glob(".staging-*"))


def test_a_damaged_bundle_does_not_become_live(tmp_path: Path, prepared: PreparedSet) -> None:
    registry = Registry(tmp_path / "registry")
    live = publish_bundle(registry.path, prepared, seed=1)
    killed = registry.path / ".staging.tmp-0123456789ab"
    killed.mkdir()
    with registry.staging() as staging:
        assert not killed.exists()  # what a killed publisher left
        make_bundle(staging / "bundle", prepared, seed=2)
        (staging / "bundle" / "recall_vectors.npy").write_bytes(b"damaged")
        with pytest.raises(IntegrityError, match=r"recall_vectors\.npy"):
            registry.publish(staging / "bundle")
    assert registry.current() == live
    assert registry.versions() == [live]


def test_a_registry_without_a_live_bundle_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="ray-recsys publish"):
        Registry(tmp_path / "nowhere").current()
    assert Registry(tmp_path / "nowhere").live() is None


@pytest.mark.parametrize("version", ["../../etc", "20260101T000000Z-00000000", ""])
def test_a_version_that_is_not_there_is_refused(tmp_path: Path, version: str) -> None:
    (tmp_path / CURRENT).write_text(version)
    with pytest.raises(RegistryError, match="does not have"):
        Registry(tmp_path).current()
