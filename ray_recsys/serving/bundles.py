"""The bundles that this process has open: each version is read and checked once, whoever asks for it."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.core.recommending.registry import Registry

NUM_KEPT = 2  # the live version, and the previous one for requests in flight


@dataclass(slots=True)
class _Opened:
    bundle: Bundle
    recommender: Recommender | None = None
    """Built on first use: an ingress whose stages run elsewhere needs no model."""


class BundleCache:
    """Opens the versions of a registry and keeps the two used last.

    Belongs to one event loop, which stays free while a version is read in a thread.
    """

    def __init__(self, registry: Path) -> None:
        self._registry = Registry(registry)
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._opening = asyncio.Lock()

    def current(self) -> str:
        """Returns the registry's live version.

        Raises:
            RegistryError: No bundle is live.
        """
        return self._registry.current()

    def open_current(self) -> Bundle:
        """Returns the live bundle; blocks while it is read, so call it before the event loop runs.

        Raises:
            RegistryError: No bundle is live.
            ArtifactError: It is damaged.
        """
        return self._current().bundle

    def load_current(self) -> Recommender:
        """Returns the live bundle's recommender; see `open_current`."""
        opened = self._current()
        opened.recommender = opened.recommender or Recommender(opened.bundle)
        return opened.recommender

    async def bundle(self, version: str) -> Bundle:
        """Returns the bundle of a version.

        Raises:
            RegistryError: The registry does not have it.
            ArtifactError: It is damaged.
        """
        return (await self._of(version)).bundle

    async def recommender(self, version: str) -> Recommender:
        """Returns the recommender of a version; see `bundle`."""
        opened = await self._of(version)
        if opened.recommender is None:
            async with self._opening:
                if opened.recommender is None:
                    opened.recommender = await asyncio.to_thread(Recommender, opened.bundle)
        return opened.recommender

    async def _of(self, version: str) -> _Opened:
        if version not in self._opened:
            async with self._opening:
                if version not in self._opened:
                    self._keep(version, await asyncio.to_thread(self._open, version))
        self._opened.move_to_end(version)
        return self._opened[version]

    def _current(self) -> _Opened:
        version = self.current()
        if version not in self._opened:
            self._keep(version, self._open(version))
        return self._opened[version]

    def _open(self, version: str) -> _Opened:
        return _Opened(self._registry.open(version))

    def _keep(self, version: str, opened: _Opened) -> None:
        self._opened[version] = opened
        while len(self._opened) > NUM_KEPT:
            self._opened.popitem(last=False)
