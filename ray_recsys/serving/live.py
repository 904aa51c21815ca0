"""The live bundle: the serving version, and the swap to the next one when the registry's CURRENT changes.

Every stage loads the next version before the first request is stamped with it. If anything fails, the old version keeps
serving and the new one is retried with exponential backoff: a damaged file may be repaired, a lost replica replaced.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from ray_recsys.core.recommending.arms import LIVE, Arm, choose_arm
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.vocabulary import ExternalId
from ray_recsys.errors import RegistryError
from ray_recsys.serving.bundles import BundleCache
from ray_recsys.serving.stages import Stages

POLL_S = 1.0
MAX_POLLS_TO_RETRY = 60

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LiveArm:
    """An arm and its bundle, loaded in every stage."""

    name: str
    bundle: Bundle
    arm: Arm | None = None
    """None: the live version."""


@dataclass(frozen=True, slots=True)
class SwapFailure:
    """The last failed swap; `version` is None if CURRENT itself could not be read."""

    version: str | None
    reason: str
    polls_to_retry: int


class LiveBundle:
    """Holds the bundle that answers new requests; a request in flight keeps the one it started with."""

    def __init__(self, cache: BundleCache[Any], stages: Stages, *, poll_s: float = POLL_S) -> None:
        """Opens the live bundle, or the last good one if it cannot be served.

        Raises:
            RegistryError: No bundle is live.
            ArtifactError: It is damaged, and so is every good one.
        """
        self._cache = cache
        self._stages = stages
        self._poll_s = poll_s
        self._retry_at_s = 0.0
        self._following: asyncio.Task[None] | None = None
        self.lists = cache.lists
        self.bundle: Bundle = cache.open_usable()
        self.failure: SwapFailure | None = self._failed_start()
        """Why the registry's live version is not served; None: it is."""
        self.arms: dict[str, LiveArm] = {}
        """Versions that serve a share of the users alongside the live one, by name."""
        self.arm_failure: str | None = None
        """Why the registry's arms are not all served; None: they are."""
        self.num_swaps = 0
        self.num_failures = 0 if self.failure is None else 1

    def choose(self, user_id: ExternalId | None) -> tuple[LiveArm, LiveArm | None]:
        """Returns the arm that answers a user, and the one that answers in its shadow, if any."""
        live = LiveArm(LIVE, self.bundle)
        if not self.arms:
            return live, None
        chosen = choose_arm([one.arm for one in self.arms.values() if one.arm], user_id)
        if chosen is None:
            return live, None
        arm = self.arms[chosen.name]
        return (live, arm) if chosen.shadow else (arm, None)

    def start(self) -> None:
        """Follows the registry on the running event loop until `stop`."""
        self._following = asyncio.get_running_loop().create_task(self.follow())

    def stop(self) -> None:
        """Stops following; the bundle stays."""
        if self._following is not None:
            self._following.cancel()
            self._following = None

    def check_following(self) -> None:
        """Raises RuntimeError if `start` was called and the registry is no longer followed."""
        if self._following is not None and self._following.done():
            raise RuntimeError("the registry is no longer followed")

    async def follow(self) -> None:
        """Swaps to new versions until cancelled; CURRENT is read at every poll, a failed version retried less often."""
        while True:
            await asyncio.sleep(self._poll_s)
            version: str | None = None
            try:
                version = await asyncio.to_thread(self._cache.current)
                await self._swap(version)
                await self._follow_arms()
            except Exception as error:  # noqa: BLE001  (a file, a replica or Serve may fail: none may end the loop)
                self._record(version, f"{type(error).__name__}: {error}")

    async def _swap(self, version: str) -> None:
        has_failed = self.failure is not None and self.failure.version == version
        if has_failed and asyncio.get_running_loop().time() < self._retry_at_s:
            return
        if version != self.bundle.version:
            bundle = await self._cache.bundle(version)
            await self._stages.load(version)
            self.bundle = bundle
            self.num_swaps += 1
        self.failure = None

    async def _follow_arms(self) -> None:
        """Loads the registry's arms; one that cannot be loaded is left out, and its users get the live version."""
        try:
            wanted = await asyncio.to_thread(self._cache.arms)
        except (RegistryError, OSError, UnicodeDecodeError) as error:
            self._report_arms(str(error))
            return
        arms, failures = {}, []
        for arm in wanted:
            loaded = self.arms.get(arm.name)
            try:
                if loaded is not None and loaded.bundle.version == arm.version:
                    bundle = loaded.bundle
                else:
                    bundle = await self._cache.bundle(arm.version)
                    await self._stages.load(arm.version)
                arms[arm.name] = LiveArm(arm.name, bundle, arm)
            except Exception as error:  # noqa: BLE001  (as in `follow`)
                failures.append(f"arm {arm.name}: {type(error).__name__}: {error}")
        self.arms = arms
        self._report_arms("; ".join(failures) or None)

    def _report_arms(self, failure: str | None) -> None:
        if failure is not None and failure != self.arm_failure:
            logger.error("not every arm is served: %s", failure)
        self.arm_failure = failure

    def _record(self, version: str | None, reason: str) -> None:
        """Logs a failure unless it repeats the last one, and postpones the next attempt at its version."""
        self.num_failures += 1
        last, polls = self.failure, 1
        if last is not None and last.version == version:
            polls = min(2 * last.polls_to_retry, MAX_POLLS_TO_RETRY)
        if last is None or (last.version, last.reason) != (version, reason):
            what = "CURRENT cannot be read" if version is None else f"{version} cannot be loaded"
            logger.error("still serving %s: %s: %s", self.bundle.version, what, reason)
        self.failure = SwapFailure(version, reason, polls)
        self._retry_at_s = asyncio.get_running_loop().time() + polls * self._poll_s

    def _failed_start(self) -> SwapFailure | None:
        if self._cache.refusal is None:
            return None
        try:
            version = self._cache.current()
        except (RegistryError, OSError, UnicodeDecodeError):
            version = None
        return SwapFailure(version, self._cache.refusal, 1)
