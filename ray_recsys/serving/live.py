"""The live bundle: which version answers now, and the swap to the next one when the registry's CURRENT changes.

Every stage loads the next version before the first request is stamped with it. If anything fails, the old version keeps
serving and the new one is retried with exponential backoff: a damaged file may be repaired, a lost replica replaced.
"""

import asyncio
import logging
from dataclasses import dataclass

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.serving.bundles import BundleCache
from ray_recsys.serving.stages import Stages

POLL_S = 1.0
MAX_POLLS_TO_RETRY = 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """The last failed swap; `version` is None if CURRENT itself could not be read."""

    version: str | None
    reason: str
    polls_to_retry: int


class LiveBundle:
    """Holds the bundle that answers new requests; a request in flight keeps the one it started with."""

    def __init__(self, cache: BundleCache, stages: Stages, *, poll_s: float = POLL_S) -> None:
        """Opens the live bundle.

        Raises:
            RegistryError: No bundle is live.
            ArtifactError: It is damaged.
        """
        self._cache = cache
        self._stages = stages
        self._poll_s = poll_s
        self._failure: _Failure | None = None
        self._retry_at_s = 0.0
        self.bundle: Bundle = cache.open_current()

    async def follow(self) -> None:
        """Swaps to new versions until cancelled; CURRENT is read at every poll, a failed version retried less often."""
        while True:
            await asyncio.sleep(self._poll_s)
            version: str | None = None
            try:
                version = await asyncio.to_thread(self._cache.current)
                await self._swap(version)
            except Exception as error:  # noqa: BLE001  (a file, a replica or Serve may fail: none may end the loop)
                self._record(version, f"{type(error).__name__}: {error}")

    async def _swap(self, version: str) -> None:
        has_failed = self._failure is not None and self._failure.version == version
        if has_failed and asyncio.get_running_loop().time() < self._retry_at_s:
            return
        if version != self.bundle.version:
            bundle = await self._cache.bundle(version)
            await self._stages.load(version)
            self.bundle = bundle
        self._failure = None

    def _record(self, version: str | None, reason: str) -> None:
        """Logs a failure unless it repeats the last one, and postpones the next attempt at its version."""
        last, polls = self._failure, 1
        if last is not None and last.version == version:
            polls = min(2 * last.polls_to_retry, MAX_POLLS_TO_RETRY)
        if last is None or (last.version, last.reason) != (version, reason):
            what = "CURRENT cannot be read" if version is None else f"{version} cannot be loaded"
            logger.error("still serving %s: %s: %s", self.bundle.version, what, reason)
        self._failure = _Failure(version, reason, polls)
        self._retry_at_s = asyncio.get_running_loop().time() + polls * self._poll_s
