"""Recall and rerank as the application calls them: batches of queries in, timed answers out, by one bundle version."""

import time
from dataclasses import dataclass
from typing import Protocol

import faiss
import torch

from ray_recsys.core.recommending.recommender import Candidates, Query, Recaller, Recommendations, Recommender, Reranker
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

    def __init__(self, cache: BundleCache[Recommender]) -> None:
        """Loads the live version, or the last good one."""
        use_one_thread()
        self._cache = cache
        cache.open_usable()

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries; see `Stages`."""
        both = await self._cache.stage(version)
        return rerank(both.reranker, queries, recall(both.recaller, queries))

    async def load(self, version: str) -> None:
        """Loads a version."""
        await self._cache.stage(version)


def recall(recaller: Recaller, queries: list[Query]) -> list[Recalled]:
    """Returns the candidates of each query, in order, with its part of the time."""
    start_s = time.perf_counter()
    found = recaller.recall_all(queries)
    each_ms = _ms_since(start_s) / len(queries)
    return [Recalled(candidates, each_ms) for candidates in found]


def rerank(reranker: Reranker, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
    """Returns the answer to each query from its candidates, in order, with its part of the time."""
    start_s = time.perf_counter()
    best = reranker.rerank_all(queries, [one.candidates for one in recalled])
    each_ms = _ms_since(start_s) / len(queries)
    return [Answer(one, found.recall_ms, each_ms) for one, found in zip(best, recalled, strict=True)]


def use_one_thread() -> None:
    """Limits torch and Faiss to one thread in this process: a query is too small for more, and queries are many."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def _ms_since(start_s: float) -> float:
    return (time.perf_counter() - start_s) * 1e3
