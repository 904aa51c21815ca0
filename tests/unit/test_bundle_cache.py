"""One process opens a version once, whoever asks, and keeps the last two."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import CURRENT, Registry
from ray_recsys.errors import ArtifactError, RegistryError
from ray_recsys.serving.bundles import BundleCache
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.stages import LocalStages
from tests.bundles import publish_bundle
from tests.factories import change_a_byte, make_prepared_set

TIMEOUT_S = 20


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Three versions, the last one live."""
    prepared = make_prepared_set(tmp_path / "prepared")
    for seed in range(3):
        publish_bundle(tmp_path / "registry", prepared, seed=seed)
    return Registry(tmp_path / "registry")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, registry: Registry) -> list[str]:  # noqa: ARG001  (it opens bundles itself)
    """Versions in the order in which they were opened."""
    versions: list[str] = []
    original = Bundle.open

    def counted(path: Path) -> Bundle:
        versions.append(path.name)
        return original(path)

    monkeypatch.setattr(Bundle, "open", counted)
    return versions


def _run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, TIMEOUT_S))


def test_the_live_bundle_and_the_local_stages_share_one_bundle(registry: Registry, opened: list[str]) -> None:
    cache = BundleCache(registry.path, Recommender)
    stages = LocalStages(cache)
    live = LiveBundle(cache, stages, poll_s=0.01)
    last = registry.current()
    first = next(version for version in registry.versions() if version != last)

    async def swap() -> None:
        following = asyncio.create_task(live.follow())
        (registry.path / CURRENT).write_text(first)
        while live.bundle.version != first:
            await asyncio.sleep(0.01)
        following.cancel()
        (answer,) = await stages.answer(first, [Query(user_idx=3)])
        assert answer.recommendations.source == "two-stage"
        assert (await cache.stage(first)).bundle is live.bundle

    _run(swap())
    assert opened == [last, first]


def test_the_two_versions_used_last_are_kept(registry: Registry, opened: list[str]) -> None:
    first, second, last = registry.versions()

    async def ask() -> None:
        cache = BundleCache(registry.path, Recommender, num_kept=2)
        for version in (first, second, first, last, first, second):
            assert (await cache.bundle(version)).version == version

    _run(ask())
    assert opened == [first, second, last, second]  # `last` evicts `second`, not `first`, which was used after it


def test_requests_for_one_version_open_it_once(registry: Registry, opened: list[str]) -> None:
    version = registry.current()

    async def ask() -> None:
        cache = BundleCache(registry.path, Recommender)
        bundles = await asyncio.gather(*(cache.bundle(version) for _ in range(5)))
        recommenders = await asyncio.gather(*(cache.stage(version) for _ in range(5)))
        assert {id(one) for one in bundles} == {id(bundles[0])}
        assert {id(one) for one in recommenders} == {id(recommenders[0])}

    _run(ask())
    assert opened == [version]


def test_the_event_loop_is_free_while_a_version_is_opened(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    original = Bundle.open

    def slow(path: Path) -> Bundle:
        assert released.wait(TIMEOUT_S)  # set by the loop: a blocked loop could not
        return original(path)

    monkeypatch.setattr(Bundle, "open", slow)

    async def ask() -> None:
        opening = asyncio.create_task(BundleCache(registry.path, Recommender).bundle(registry.current()))
        await asyncio.sleep(0.05)
        assert not opening.done()
        released.set()
        await opening

    _run(ask())


def test_a_damaged_version_is_checked_again_at_the_next_request(registry: Registry, opened: list[str]) -> None:
    version = registry.versions()[0]
    damaged = Path(registry.locate(version)) / "seen_items.npy"
    content = damaged.read_bytes()
    change_a_byte(damaged)

    async def ask() -> None:
        cache = BundleCache(registry.path, Recommender)
        with pytest.raises(ArtifactError, match=r"seen_items\.npy"):
            await cache.stage(version)
        damaged.write_bytes(content)
        assert (await cache.stage(version)).bundle.version == version

    _run(ask())
    assert opened == [version, version]


def test_without_a_live_bundle_nothing_is_opened(tmp_path: Path) -> None:
    cache = BundleCache(tmp_path / "empty", Recommender)
    for call in (cache.current, cache.open_usable, cache.load_usable):
        with pytest.raises(RegistryError, match="no live bundle"):
            call()
