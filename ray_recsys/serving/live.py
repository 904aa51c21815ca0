"""The live bundle: which version answers now, and the swap to the next one when the registry's CURRENT changes.

The next version is loaded in every stage before the first request is stamped with it. Whatever goes wrong with a
version, the one before goes on and the next is tried again, later each time: a damaged file may be mended, a lost
replica is replaced. This module does not know what is asked of a bundle.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.serving.stages import Stages

POLL_S = 1.0
MAX_POLLS_TO_RETRY = 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failure:
    """What went wrong last; `version` is None where not even CURRENT could be read."""

    version: str | None
    reason: str
    polls_to_retry: int


class LiveBundle:
    """Holds the bundle that new requests are answered by; a request keeps the one that it began with."""

    def __init__(self, registry: Path, stages: Stages, *, poll_s: float = POLL_S) -> None:
        """Opens the live bundle.

        Raises:
            RegistryError: No bundle is live.
            ArtifactError: It is damaged.
        """
        self._registry = Registry(registry)
        self._stages = stages
        self._poll_s = poll_s
        self._failure: _Failure | None = None
        self._retry_at_s = 0.0
        self.bundle: Bundle = self._registry.open()

    async def follow(self) -> None:
        """Swaps to new versions until it is cancelled; CURRENT is read at every poll, a failed version less often."""
        while True:
            await asyncio.sleep(self._poll_s)
            version: str | None = None
            try:
                version = await asyncio.to_thread(self._registry.current)
                await self._swap(version)
            except Exception as error:  # noqa: BLE001  (of a file, a replica or Serve: none may end the following)
                self._note(version, f"{type(error).__name__}: {error}")

    async def _swap(self, version: str) -> None:
        is_waiting = self._failure is not None and self._failure.version == version
        if is_waiting and asyncio.get_running_loop().time() < self._retry_at_s:
            return
        if version != self.bundle.version:
            bundle = await asyncio.to_thread(self._registry.open, version)
            await self._stages.load(version)
            self.bundle = bundle
        self._failure = None

    def _note(self, version: str | None, reason: str) -> None:
        """Logs a failure unless it is the last one again, and puts off the next try of its version."""
        last, polls = self._failure, 1
        if last is not None and last.version == version:
            polls = min(2 * last.polls_to_retry, MAX_POLLS_TO_RETRY)
        if last is None or (last.version, last.reason) != (version, reason):
            logger.error("goes on with %s; %s: %s", self.bundle.version, version or "CURRENT", reason)
        self._failure = _Failure(version, reason, polls)
        self._retry_at_s = asyncio.get_running_loop().time() + polls * self._poll_s
