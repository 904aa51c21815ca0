"""The two stages as the graph calls them: lists of queries in, timed answers out, by the bundle version asked for.

This module does not know in which process a stage runs.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ray_recsys.core.recommending.recommender import Candidates, Query, Recommendations, Recommender
from ray_recsys.core.recommending.registry import Registry

NUM_LOADED = 2  # the live bundle, and the one before for requests under way


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the first stage made of a query."""

    candidates: Candidates
    recall_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What both stages made of a query."""

    recommendations: Recommendations
    recall_ms: float
    rerank_ms: float


class Stages(Protocol):
    """Both stages, wherever they run."""

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries by one bundle version, in their order.

        Raises:
            Problem: A stage is overloaded or gone.
        """

    async def load(self, version: str) -> None:
        """Loads a version everywhere, so that no request waits for it."""


class LoadedRecommenders:
    """Recommenders by version, loaded when asked for; the two asked for last are kept. Belongs to one event loop."""

    def __init__(self, registry: Path) -> None:
        """Loads the registry's live version, before there is an event loop to keep free."""
        self._registry = Registry(registry)
        self._loaded: OrderedDict[str, Recommender] = OrderedDict()
        self._loading = asyncio.Lock()
        version = self._registry.current()
        self._keep(version, self._open(version))

    async def of(self, version: str) -> Recommender:
        """Returns the recommender of a version; the event loop is free while it is loaded.

        Raises:
            RegistryError: The registry does not have it.
            ArtifactError: It is damaged.
        """
        if version not in self._loaded:
            async with self._loading:
                if version not in self._loaded:
                    self._keep(version, await asyncio.to_thread(self._open, version))
        self._loaded.move_to_end(version)
        return self._loaded[version]

    def _open(self, version: str) -> Recommender:
        return Recommender(self._registry.open(version))

    def _keep(self, version: str, recommender: Recommender) -> None:
        self._loaded[version] = recommender
        while len(self._loaded) > NUM_LOADED:
            self._loaded.popitem(last=False)


class StageHere:
    """A stage, or both, in this process.

    It runs on the event loop: a thread, which Serve starts anew for a call, costs more. Kernels get one thread: a
    request is too small for more, and requests are many.
    """

    def __init__(self, registry: str | Path) -> None:
        torch.set_num_threads(1)
        self._recommenders = LoadedRecommenders(Path(registry))

    async def load(self, version: str) -> None:
        """Loads a version."""
        await self._recommenders.of(version)


class LocalStages(StageHere):
    """Both stages in this process."""

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries; see `Stages`."""
        recommender = await self._recommenders.of(version)
        return run_rerank(recommender, queries, run_recall(recommender, queries))


def run_recall(recommender: Recommender, queries: list[Query]) -> list[Recalled]:
    """Returns the first stage's results, in the order of the queries."""
    results = []
    for query in queries:
        start_s = time.perf_counter()
        candidates = recommender.recall(query)
        results.append(Recalled(candidates, _ms_since(start_s)))
    return results


def run_rerank(recommender: Recommender, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
    """Returns the answers from the first stage's results, in the order of the queries."""
    answers = []
    for query, before in zip(queries, recalled, strict=True):
        start_s = time.perf_counter()
        recommendations = recommender.rerank(query, before.candidates)
        answers.append(Answer(recommendations, before.recall_ms, _ms_since(start_s)))
    return answers


def _ms_since(start_s: float) -> float:
    return (time.perf_counter() - start_s) * 1e3
