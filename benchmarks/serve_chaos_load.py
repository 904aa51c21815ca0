"""The load of `serve_chaos`: requests at a steady rate, each answer compared with what its version answers offline."""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Self

import httpx
import numpy as np

from ray_recsys.core.recommending.recommender import Query, Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.core.vocabulary import ExternalId

NUM_ATTEMPTS = 4
BACKOFF_S = 0.2  # doubles: a replica that died is replaced within seconds, and the others keep answering
NUM_USERS = 50
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=50)
_RETRIED = (500, 502, 503, 504)

Expected = dict[str, dict[ExternalId, list[ExternalId]]]
"""Items by version and user."""


def expected_answers(registry: Registry) -> Expected:
    """Returns what every version of a registry answers to the first users."""
    return {version: _of_version(Recommender(registry.open(version))) for version in registry.versions()}


def _of_version(recommender: Recommender) -> dict[ExternalId, list[ExternalId]]:
    catalogue, users = recommender.bundle.catalogue, recommender.bundle.users
    answers = {users.id_of(user): recommender.recommend(Query(user_idx=user)).item_idx for user in range(NUM_USERS)}
    return {user: [item.item_id for item in catalogue.describe(items)] for user, items in answers.items()}


@dataclass(slots=True)
class Counts:
    """Outcomes of the requests."""

    answered: int = 0
    retried: int = 0
    """Answered after another attempt: recommending is idempotent."""
    failed: int = 0
    """Not answered by any attempt."""
    mixed: int = 0
    """Answered by other items than the version that the answer names has for the user."""
    slowest_s: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    """Errors of failed attempts, with their counts."""

    def failed_with(self, reason: str) -> None:
        """Counts an attempt that failed."""
        self.reasons[reason] = self.reasons.get(reason, 0) + 1


class SteadyLoad:
    """Sends requests at a rate from a separate thread, in a `with` block; a slow answer does not delay the next one.

    Args:
        address: Of the service.
        rate_per_s: Requests per second.
        expected: Items that each version answers with.
    """

    def __init__(self, address: str, rate_per_s: float, expected: Expected) -> None:
        self._address, self._rate, self._expected = address, rate_per_s, expected
        self.counts = Counts()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=60)

    def take(self) -> Counts:
        """Returns what was counted since the last call."""
        taken, self.counts = self.counts, Counts()
        return taken

    async def _send(self) -> None:
        users, rng = list(next(iter(self._expected.values()))), np.random.default_rng(0)
        under_way: set[asyncio.Task[None]] = set()
        async with httpx.AsyncClient(base_url=self._address, timeout=10, limits=UNLIMITED, trust_env=False) as client:
            next_s = time.perf_counter()
            while not self._stop.is_set():
                task = asyncio.create_task(self._ask(client, users[int(rng.integers(len(users)))]))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                next_s += 1 / self._rate
                await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            await asyncio.gather(*under_way)

    async def _ask(self, client: httpx.AsyncClient, user: ExternalId) -> None:
        start_s = time.perf_counter()
        for attempt in range(NUM_ATTEMPTS):
            try:
                response = await client.post("/v1/recommend", json={"user_id": user})
                if response.status_code not in _RETRIED:
                    self._count(response, user, attempt, time.perf_counter() - start_s)
                    return
                self.counts.failed_with(str(response.status_code))
            except httpx.HTTPError as error:
                self.counts.failed_with(type(error).__name__)
            await asyncio.sleep(BACKOFF_S * 2**attempt)
        self.counts.failed += 1

    def _count(self, response: httpx.Response, user: ExternalId, attempt: int, seconds: float) -> None:
        counts = self.counts
        counts.slowest_s = max(counts.slowest_s, seconds)
        if response.status_code != 200:
            counts.failed += 1
            counts.failed_with(str(response.status_code))
            return
        counts.answered += 1
        counts.retried += attempt > 0
        body = response.json()
        counts.mixed += [item["item_id"] for item in body["items"]] != self._expected[body["bundle"]][user]
