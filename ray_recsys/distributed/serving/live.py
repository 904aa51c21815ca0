"""The live bundle: which version answers now, and the swap to the next one when the registry's CURRENT changes.

The next version is loaded in every stage before the first request is stamped with it. A version that cannot be opened
is left out, and the one before goes on. This module does not know what is asked of a bundle.
"""

import asyncio
import logging
from pathlib import Path

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serving.stages import Stages
from ray_recsys.errors import InputError

POLL_S = 1.0

logger = logging.getLogger(__name__)


class LiveBundle:
    """Holds the bundle that new requests are answered by; a request keeps the one that it began with."""

    def __init__(self, registry: Path, stages: Stages) -> None:
        """Opens the live bundle.

        Raises:
            RegistryError: No bundle is live.
            ArtifactError: It is damaged.
        """
        self._registry = Registry(registry)
        self._stages = stages
        self._refused: str | None = None
        self.bundle: Bundle = self._registry.open()

    async def follow(self) -> None:
        """Swaps to new versions until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.refresh()

    async def refresh(self) -> None:
        """Swaps to the registry's live version if it is another one and can be opened."""
        version: str | None = None
        try:
            version = await asyncio.to_thread(self._registry.current)
            if version in (self.bundle.version, self._refused):
                return
            bundle = await asyncio.to_thread(self._registry.open, version)
            await self._stages.load(version)
        except InputError as error:
            self._refused = version
            logger.error("goes on with %s: %s", self.bundle.version, error)
            return
        self.bundle, self._refused = bundle, None
