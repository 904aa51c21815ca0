"""The open bundles of this process: each version is read and checked once."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from ray_recsys.core.recommending.arms import MAX_ARMS, Arm, read_arms
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.guard import Stage, check_answers, check_bundle, read_smoke
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.recommending.stock_lists import StockLists
from ray_recsys.errors import InputError, RegistryError
from ray_recsys.storage.location import LocationLike
from ray_recsys.storage.locks import Hold, NoHold

NUM_KEPT = 2 + MAX_ARMS  # the live version, the previous one for requests in flight, and the arms
S = TypeVar("S", bound=Stage | None)

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Opened(Generic[S]):
    bundle: Bundle
    stage: S
    hold: Hold | NoHold
    """Keeps the version from being pruned."""


def no_stage(_: Bundle) -> None:
    """Builds nothing: for an ingress whose stages run elsewhere."""


def usable_version(registry: LocationLike) -> str:
    """Returns the version that a server of this registry starts with; see `BundleCache.open_usable`."""
    return BundleCache(registry, no_stage).open_usable().version


class BundleCache(Generic[S]):
    """Opens the versions of a registry and keeps the ones used last.

    A bundle is checked as a whole by the first process of a node that opens it, and the stages of this process by each.
    Belongs to one event loop, which stays free while a version is read in a thread.

    Args:
        registry: Directory of bundles.
        build: Builds the stages of this process: both, one, or none.
        num_kept: Versions that stay open.
    """

    def __init__(self, registry: LocationLike, build: Callable[[Bundle], S], *, num_kept: int = NUM_KEPT) -> None:
        self._registry, self._build, self._num_kept = Registry(registry), build, num_kept
        self.lists = StockLists(registry)
        self._opened: OrderedDict[str, _Opened[S]] = OrderedDict()
        self._opening = asyncio.Lock()
        self.refusal: str | None = None
        """Why the bundle that was live at the start is not served."""

    def current(self) -> str:
        """Returns the registry's live version.

        Raises:
            RegistryError: No bundle is live.
        """
        return self._registry.current()

    def arms(self) -> list[Arm]:
        """Returns the registry's arms.

        Raises:
            RegistryError: They cannot be read.
        """
        return read_arms(self._registry.location)

    def open_usable(self) -> Bundle:
        """Returns the live bundle, or the last good one if the live one is damaged or fails its check.

        Every process that looks at the same files chooses the same version. Blocks while bundles are read, so call it
        before the event loop runs.

        Raises:
            RegistryError: No bundle is live, and there was none before.
            ArtifactError: The live bundle cannot be served, and neither can any good one.
        """
        return self._usable().bundle

    def load_usable(self) -> S:
        """Returns the stages of the same bundle; see `open_usable`."""
        return self._usable().stage

    async def bundle(self, version: str) -> Bundle:
        """Returns the bundle of a version.

        Raises:
            RegistryError: The registry does not have it.
            ArtifactError: It is damaged or was refused.
        """
        return (await self._of(version)).bundle

    async def stage(self, version: str) -> S:
        """Returns the stages of a version, checked and warmed up on first use; see `bundle`."""
        return (await self._of(version)).stage

    async def _of(self, version: str) -> _Opened[S]:
        opened = self._opened.get(version)
        if opened is None:
            async with self._opening:
                if version not in self._opened:
                    self._keep(version, await asyncio.to_thread(self._open, version))
            opened = self._opened[version]
        self._opened.move_to_end(version)
        return opened

    def _usable(self) -> _Opened[S]:
        try:
            return self._load(self.current())
        except (InputError, OSError, UnicodeDecodeError) as error:
            return self._fallback(error)

    def _fallback(self, error: Exception) -> _Opened[S]:
        self.refusal = f"{type(error).__name__}: {error}"
        for version in self._registry.good():
            try:
                opened = self._load(version)
            except (InputError, OSError) as also:
                logger.error("%s cannot be served either: %s", version, also)
                continue
            logger.error("CURRENT cannot be served, falling back to %s: %s", version, self.refusal)
            return opened
        if isinstance(error, InputError):
            raise error
        raise RegistryError(f"{self._registry.location}: CURRENT cannot be read ({error})") from error

    def _load(self, version: str) -> _Opened[S]:
        if version not in self._opened:
            self._keep(version, self._open(version))
        return self._opened[version]

    def _open(self, version: str) -> _Opened[S]:
        hold = self._registry.hold(version)
        bundle = self._registry.open(version)
        check_bundle(bundle)
        stage = self._build(bundle)
        if stage is not None:
            check_answers(stage, read_smoke(bundle))
        return _Opened(bundle, stage, hold)

    def _keep(self, version: str, opened: _Opened[S]) -> None:
        self._opened[version] = opened
        self._opened.move_to_end(version)
        while len(self._opened) > self._num_kept:
            self._opened.popitem(last=False)[1].hold.release()
