"""The bundles that this process has open: each version is read and checked once, whoever asks for it."""

import asyncio
import logging
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.guard import check_bundle
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.errors import InputError, RegistryError
from ray_recsys.storage.locks import Hold

NUM_KEPT = 2  # the live version, and the previous one for requests in flight

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opened:
    bundle: Bundle
    hold: Hold
    """Keeps the version from being pruned."""
    recommender: Recommender | None = None
    """Built on first use: an ingress whose stages run elsewhere needs no model."""


def usable_version(registry: Path) -> str:
    """Returns the version that a server of this registry starts with; see `BundleCache.open_usable`."""
    return BundleCache(registry).open_usable().version


class BundleCache:
    """Opens the versions of a registry and keeps the two used last.

    Belongs to one event loop, which stays free while a version is read in a thread.
    """

    def __init__(self, registry: Path) -> None:
        self._registry = Registry(registry)
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._opening = asyncio.Lock()
        self.refusal: str | None = None
        """Why the bundle that was live at the start is not served."""

    def current(self) -> str:
        """Returns the registry's live version.

        Raises:
            RegistryError: No bundle is live.
        """
        return self._registry.current()

    def open_usable(self) -> Bundle:
        """Returns the live bundle, or the last good one if the live one is damaged or fails its check.

        Every process that looks at the same files chooses the same version. Blocks while bundles are read, so call it
        before the event loop runs.

        Raises:
            RegistryError: No bundle is live, and there was none before.
            ArtifactError: The live bundle cannot be served, and neither can any good one.
        """
        return self._usable().bundle

    def load_usable(self) -> Recommender:
        """Returns the recommender of the same bundle; see `open_usable`."""
        recommender = self._usable().recommender
        assert recommender is not None
        return recommender

    def unload(self, version: str) -> None:
        """Forgets a version's models: an ingress checks them once and leaves them to its stages."""
        if version in self._opened:
            self._opened[version].recommender = None

    async def bundle(self, version: str) -> Bundle:
        """Returns the bundle of a version.

        Raises:
            RegistryError: The registry does not have it.
            ArtifactError: It is damaged.
        """
        return (await self._of(version)).bundle

    async def recommender(self, version: str) -> Recommender:
        """Returns the recommender of a version, checked and warm when it is first asked for; see `bundle`."""
        opened = await self._of(version)
        if opened.recommender is None:
            async with self._opening:
                if opened.recommender is None:
                    opened.recommender = await self._checked(opened.bundle)
        return opened.recommender

    async def _checked(self, bundle: Bundle) -> Recommender:
        try:
            return await asyncio.to_thread(check_bundle, bundle)
        except BaseException:
            self._opened.pop(bundle.version, None)  # its files are read again at the next attempt
            raise

    async def _of(self, version: str) -> _Opened:
        if version not in self._opened:
            async with self._opening:
                if version not in self._opened:
                    self._keep(version, await asyncio.to_thread(self._open, version))
        self._opened.move_to_end(version)
        return self._opened[version]

    def _usable(self) -> _Opened:
        try:
            return self._loaded(self.current())
        except (InputError, OSError, UnicodeDecodeError) as error:
            return self._fallback(error)

    def _fallback(self, error: Exception) -> _Opened:
        self.refusal = f"{type(error).__name__}: {error}"
        for version in self._registry.good():
            try:
                opened = self._loaded(version)
            except (InputError, OSError) as also:
                logger.error("%s cannot be served either: %s", version, also)
                continue
            logger.error("CURRENT cannot be served, falling back to %s: %s", version, self.refusal)
            return opened
        if isinstance(error, InputError):
            raise error
        raise RegistryError(f"{self._registry.path}: CURRENT cannot be read ({error})") from error

    def _loaded(self, version: str) -> _Opened:
        opened = self._opened.get(version) or self._open(version)
        opened.recommender = opened.recommender or check_bundle(opened.bundle)
        self._keep(version, opened)
        return opened

    def _open(self, version: str) -> _Opened:
        hold = self._registry.hold(version)
        return _Opened(self._registry.open(version), hold)

    def _keep(self, version: str, opened: _Opened) -> None:
        self._opened[version] = opened
        self._opened.move_to_end(version)
        while len(self._opened) > NUM_KEPT:
            self._opened.popitem(last=False)[1].hold.release()
