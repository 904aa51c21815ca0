"""A bundle that would not answer as it did is refused: when published, and by each process that would serve it."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ray_recsys.core.artifact import digest_file, write_manifest
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending import guard
from ray_recsys.core.recommending.bundle import KIND, SCHEMA_VERSION, Bundle
from ray_recsys.core.recommending.candidate_index import VECTORS
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.core.recommending.registry import CURRENT, LAST_GOOD, Registry
from ray_recsys.errors import BundleRefusedError, InputError, IntegrityError, RegistryError
from ray_recsys.serving.bundles import BundleCache, usable_version
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.stages import LocalStages
from tests.app_client import AppClient, local_api
from tests.bundles import make_bundle, publish_bundle
from tests.factories import make_prepared_set


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSet:
    return make_prepared_set(tmp_path / "prepared")


def sign_again(path: Path) -> None:
    """Writes the manifest anew over changed files: every byte is then as the manifest says."""
    body = json.loads((path / "manifest.json").read_text())
    names = [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.is_file()]
    digests = {name: digest_file(path / name) for name in names if name != "manifest.json"}
    kept = {
        key: value for key, value in body.items() if key not in ("kind", "schema_version", "files", "manifest_sha256")
    }
    write_manifest(path, kind=KIND, schema_version=SCHEMA_VERSION, body=kept, digests=digests)


def _two_item_index(path: Path) -> None:
    np.save(path / VECTORS, np.load(path / VECTORS)[:2])


def _nan_index(path: Path) -> None:
    vectors = np.load(path / VECTORS)
    vectors[3] = np.nan
    np.save(path / VECTORS, vectors)


def _shuffled_index(path: Path) -> None:
    """Finite and of the right size, but the vectors belong to other items: only the answers show it."""
    np.save(path / VECTORS, -np.load(path / VECTORS))


def _nan_weight(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    (file,) = (path / "model").rglob("*.safetensors")
    arrays = load_file(file)
    name = max(arrays, key=lambda one: arrays[one].size)
    arrays[name].reshape(-1)[5] = np.nan
    save_file(arrays, file)


def _far_neighbour(path: Path) -> None:
    neighbours = np.load(path / "neighbours.npy")
    neighbours[1, 1] = 40
    np.save(path / "neighbours.npy", neighbours)


def _falling_offsets(path: Path) -> None:
    offsets = np.load(path / "seen_offsets.npy")
    offsets[3] = offsets[2] - 1
    np.save(path / "seen_offsets.npy", offsets)


def _far_seen_item(path: Path) -> None:
    items = np.load(path / "seen_items.npy")
    items[0] = -1
    np.save(path / "seen_items.npy", items)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "two-item index": (_two_item_index, r"recall_vectors\.npy has 2 items, the catalogue 40"),
    "NaN in the index": (_nan_index, r"recall_vectors\.npy: row 3 has a value that is not finite"),
    "vectors of other items": (_shuffled_index, r"smoke query 0 \(user 0\) got two-stage items"),
    "NaN weight": (_nan_weight, r"model, item_rows: row 0 .* not finite"),
    "neighbour out of range": (_far_neighbour, r"neighbours have indices .*\.\.40, of 40 items"),
    "falling offsets": (_falling_offsets, "the offsets of the seen items do not ascend from 0"),
    "seen item out of range": (_far_seen_item, r"seen items have indices -1\.\."),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bundle_that_would_not_answer_is_refused_and_the_old_one_stays_live(
    tmp_path: Path, prepared: PreparedSet, damage: str
) -> None:
    change, message = DAMAGES[damage]
    registry = Registry(tmp_path / "registry")
    live = publish_bundle(registry.path, prepared, seed=1)
    with registry.staging() as staging:
        make_bundle(staging / "bundle", prepared, seed=2)
        change(staging / "bundle")
        sign_again(staging / "bundle")
        Bundle.open(staging / "bundle")  # every byte is as the manifest says
        with pytest.raises(BundleRefusedError, match=message):
            registry.publish(staging / "bundle")
    assert registry.current() == live
    assert registry.versions() == [live]


def test_the_smoke_queries_are_of_every_kind_and_their_answers_are_the_recommenders(
    tmp_path: Path, prepared: PreparedSet
) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    guard.check_bundle(Bundle.open(tmp_path / "bundle"))
    recommender = Recommender(Bundle.open(tmp_path / "bundle"))
    smoke = guard.read_smoke(recommender.bundle)
    assert {one.source for one in smoke} == {"two-stage", "fold-in", "popular"}
    for one in smoke:
        answer = recommender.recommend(one.query)
        assert answer.item_idx.tolist() == list(one.item_idx)
        assert recommender.recall(one.query).item_idx.tolist() == list(one.candidates)


def test_rounding_and_ties_pass_the_smoke_queries_and_other_scores_do_not(
    tmp_path: Path, prepared: PreparedSet
) -> None:
    make_bundle(tmp_path / "bundle", prepared)
    recommender = Recommender(Bundle.open(tmp_path / "bundle"))
    (smoke, *_) = guard.read_smoke(recommender.bundle)
    answer = recommender.recommend(smoke.query)
    is_same = guard._is_same
    assert is_same(smoke, dataclasses.replace(answer, scores=answer.scores * np.float32(1.0001)))
    assert not is_same(smoke, dataclasses.replace(answer, scores=answer.scores + np.float32(0.1)))
    swapped = answer.item_idx.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    gap = float(answer.scores[0] - answer.scores[1])
    assert gap > 0.01
    assert not is_same(smoke, dataclasses.replace(answer, item_idx=swapped))
    tied = dataclasses.replace(smoke, scores=(smoke.scores[1], *smoke.scores[1:]))
    scores = answer.scores.copy()
    scores[0] = scores[1]
    assert is_same(tied, dataclasses.replace(answer, item_idx=swapped, scores=scores))


def _damage_live(registry: Registry, kind: str) -> None:
    path = Path(registry.locate(registry.current()))
    if kind == "truncated file":
        (path / VECTORS).write_bytes(b"damaged")
    elif kind == "refused":
        _two_item_index(path)
        sign_again(path)
    elif kind == "absent version":
        (registry.path / CURRENT).write_text("20260101T000000Z-00000000\n")
    elif kind == "no text":
        (registry.path / CURRENT).write_bytes(b"\xff\xfe")


@pytest.mark.parametrize("kind", ["truncated file", "refused", "absent version", "no text"])
def test_a_bad_current_does_not_kill_a_restart(tmp_path: Path, prepared: PreparedSet, kind: str) -> None:
    registry = Registry(tmp_path / "registry")
    versions = [publish_bundle(registry.path, prepared, seed=seed) for seed in (1, 2)]
    assert (registry.path / LAST_GOOD).read_text().split() == versions[::-1]
    _damage_live(registry, kind)
    # only where the bundle itself is bad must the one before it serve
    expected = versions[0] if kind in ("truncated file", "refused") else versions[1]
    assert usable_version(registry.path) == expected
    client = AppClient(local_api(registry.path))
    try:
        ready = client.request("GET", "/readyz")
        assert (ready.status_code, ready.json()["status"], ready.json()["bundle"]) == (200, "degraded", expected)
        assert client.request("GET", "/v1/bundle").json()["swap_failure"] == ready.json()["swap_failure"]
        assert client.request("POST", "/v1/recommend", json={"user_id": "user-00001"}).json()["bundle"] == expected
    finally:
        client.close()


def test_where_no_version_can_be_served_a_start_says_why(tmp_path: Path, prepared: PreparedSet) -> None:
    registry = Registry(tmp_path / "registry")
    publish_bundle(registry.path, prepared)
    _damage_live(registry, "truncated file")
    with pytest.raises(IntegrityError, match=r"recall_vectors\.npy"):
        usable_version(registry.path)
    (registry.path / CURRENT).write_bytes(b"\xff")
    (registry.path / LAST_GOOD).unlink()
    with pytest.raises(RegistryError, match="CURRENT names version"):
        usable_version(registry.path)


def test_a_swap_to_a_refused_version_is_reported_until_a_good_one_comes(tmp_path: Path, prepared: PreparedSet) -> None:
    import asyncio

    registry = Registry(tmp_path / "registry")
    publish_bundle(registry.path, prepared, seed=1)
    cache = BundleCache(registry.path, Recommender)
    live = LiveBundle(cache, LocalStages(cache), poll_s=0.01)
    good = live.bundle.version
    bad = publish_bundle(registry.path, prepared, seed=2)
    _two_item_index(Path(registry.locate(bad)))
    sign_again(Path(registry.locate(bad)))

    async def run() -> None:
        live.start()
        while live.failure is None:
            await asyncio.sleep(0.01)
        assert (live.bundle.version, live.failure.version) == (good, bad)
        assert "2 items" in live.failure.reason
        live.check_following()
        third = publish_bundle(registry.path, prepared, seed=3)
        while live.bundle.version != third:
            await asyncio.sleep(0.01)
        live.stop()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert (live.num_swaps, live.num_failures > 0, live.failure) == (1, True, None)


def test_a_healthy_start_is_ready(tmp_path: Path, prepared: PreparedSet) -> None:
    publish_bundle(tmp_path / "registry", prepared)
    client = AppClient(local_api(tmp_path / "registry"))
    try:
        assert client.request("GET", "/readyz").json()["status"] == "ready"
        assert client.request("GET", "/readyz").json()["swap_failure"] is None
    finally:
        client.close()
    assert issubclass(BundleRefusedError, InputError)
