"""The swap to a new version: if it fails, the old version keeps serving and the new one is retried."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ray_recsys.core.recommending.registry import CURRENT, Registry
from ray_recsys.serving.bundles import BundleCache, no_stage
from ray_recsys.serving.live import LiveBundle
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

POLL_S = 0.01


class FakeStages:
    """Stages whose loads fail by `outcomes` in turn, and succeed afterwards."""

    def __init__(self, *outcomes: Exception) -> None:
        self.loads: list[str] = []
        self._outcomes = list(outcomes)

    async def answer(self, version: str, queries: list[Any]) -> list[Any]:
        raise NotImplementedError

    async def load(self, version: str) -> None:
        self.loads.append(version)
        if self._outcomes:
            raise self._outcomes.pop(0)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    publish_bundle(tmp_path / "registry", make_prepared_set(tmp_path / "prepared"), seed=1)
    return Registry(tmp_path / "registry")


def _publish(registry: Registry, tmp_path: Path) -> str:
    return publish_bundle(registry.path, make_prepared_set(tmp_path / "again"), seed=2)


def _following(live: LiveBundle, body: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        following = asyncio.create_task(live.follow())
        try:
            await asyncio.wait_for(body(), timeout=20)
            assert not following.done()
        finally:
            following.cancel()

    asyncio.run(run())


async def _until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(POLL_S)


@pytest.mark.parametrize("error", [RuntimeError("the actor died"), TimeoutError(), OSError(5, "Input/output error")])
def test_a_load_that_fails_once_is_retried(registry: Registry, tmp_path: Path, error: Exception) -> None:
    stages = FakeStages(error)
    live = LiveBundle(BundleCache(registry.path, no_stage), stages, poll_s=POLL_S)
    version = _publish(registry, tmp_path)
    _following(live, lambda: _until(lambda: live.bundle.version == version))
    assert stages.loads == [version, version]


def test_a_load_that_always_fails_is_retried_with_backoff_and_logged_once(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stages = FakeStages(*[TimeoutError("no answer")] * 100)
    live = LiveBundle(BundleCache(registry.path, no_stage), stages, poll_s=POLL_S)
    before = live.bundle.version
    version = _publish(registry, tmp_path)
    caplog.set_level(logging.ERROR)
    _following(live, lambda: asyncio.sleep(100 * POLL_S))
    assert 2 <= len(stages.loads) <= 8  # after 1, 2, 4 ... polls; one every poll would be 100
    assert live.bundle.version == before
    assert caplog.messages == [f"still serving {before}: {version} cannot be loaded: TimeoutError: no answer"]


def test_a_damaged_version_goes_live_once_it_is_repaired(registry: Registry, tmp_path: Path) -> None:
    live = LiveBundle(BundleCache(registry.path, no_stage), FakeStages(), poll_s=POLL_S)
    before = live.bundle.version
    version = _publish(registry, tmp_path)
    damaged = next(path for path in Path(registry.locate(version)).rglob("*.safetensors"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1])

    async def body() -> None:
        await asyncio.sleep(5 * POLL_S)
        assert live.bundle.version == before
        damaged.write_bytes(content)
        await _until(lambda: live.bundle.version == version)

    _following(live, body)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"absent"])
def test_a_lost_or_damaged_current_is_logged_once_and_read_again(
    registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    live = LiveBundle(BundleCache(registry.path, no_stage), FakeStages(), poll_s=POLL_S)
    before = live.bundle.version
    current = registry.path / CURRENT
    if content is None:
        current.unlink()
    else:
        current.write_bytes(content)
    caplog.set_level(logging.ERROR)

    async def body() -> None:
        await asyncio.sleep(10 * POLL_S)
        assert live.bundle.version == before
        assert len(caplog.messages) == 1
        current.unlink(missing_ok=True)
        version = _publish(registry, tmp_path)
        await _until(lambda: live.bundle.version == version)

    _following(live, body)
