"""Recall and rerank as the application calls them: batches of queries in, timed answers out, by one bundle version."""

import time
from dataclasses import dataclass
from typing import Protocol

import torch

from ray_recsys.core.recommending.recommender import Candidates, Query, Recommendations, Recommender
from ray_recsys.serving.bundles import BundleCache


@dataclass(frozen=True, slots=True)
class Recalled:
    """Recall's result for one query."""

    candidates: Candidates
    recall_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of both stages for one query."""

    recommendations: Recommendations
    recall_ms: float
    rerank_ms: float


class Stages(Protocol):
    """Both stages, in this process or in others."""

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries by one bundle version, in order.

        Raises:
            Problem: A stage is overloaded, timed out or unavailable.
        """

    async def load(self, version: str) -> None:
        """Loads and checks a version in every replica, so that no request waits for it.

        Raises:
            ArtifactError: A replica refused it.
        """


class LocalStages:
    """Both stages in this process.

    They run on the event loop: handing a query to a thread costs more than the query.
    """

    def __init__(self, cache: BundleCache) -> None:
        """Loads the live version, or the last good one."""
        use_one_thread()
        self._cache = cache
        cache.load_usable()

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries; see `Stages`."""
        recommender = await self._cache.recommender(version)
        return rerank(recommender, queries, recall(recommender, queries))

    async def load(self, version: str) -> None:
        """Loads a version."""
        await self._cache.recommender(version)


def recall(recommender: Recommender, queries: list[Query]) -> list[Recalled]:
    """Returns the candidates of each query, in order."""
    results = []
    for query in queries:
        start_s = time.perf_counter()
        candidates = recommender.recall(query)
        results.append(Recalled(candidates, _ms_since(start_s)))
    return results


def rerank(recommender: Recommender, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
    """Returns the answer to each query from its candidates, in order."""
    answers = []
    for query, found in zip(queries, recalled, strict=True):
        start_s = time.perf_counter()
        recommendations = recommender.rerank(query, found.candidates)
        answers.append(Answer(recommendations, found.recall_ms, _ms_since(start_s)))
    return answers


def use_one_thread() -> None:
    """Limits torch to one thread in this process: a query is too small for more, and queries are many."""
    torch.set_num_threads(1)


def _ms_since(start_s: float) -> float:
    return (time.perf_counter() - start_s) * 1e3
