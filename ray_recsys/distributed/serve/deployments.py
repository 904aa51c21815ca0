"""The deployments: an ingress with the HTTP application, and replicas of recall and rerank."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from fastapi import FastAPI
from prometheus_client.core import Metric
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.bundle import Bundle
from ray_recsys.core.recommending.guard import check_answers, read_smoke
from ray_recsys.core.recommending.recommender import Query, Recaller, Recommender, Reranker
from ray_recsys.serving.api import SCRAPE_S, Api
from ray_recsys.serving.app import make_app
from ray_recsys.serving.bundles import BundleCache, no_stage
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.problems import overloaded, timed_out, unavailable
from ray_recsys.serving.stages import Answer, LocalStages, Recalled, Stages, recall, rerank, use_one_thread

LOAD_TIMEOUT_S = 300.0
Handle = DeploymentHandle[Any]
S = TypeVar("S", bound=Recaller | Reranker)


class StageReplica(Generic[S]):
    """One stage in its own process. Its methods run on the replica's event loop: a thread costs more than a query.

    Args:
        registry: Directory of bundles.
        build: Makes the stage of a bundle.
    """

    def __init__(self, registry: str, build: Callable[[Bundle], S]) -> None:
        use_one_thread()
        self._cache: BundleCache[S] = BundleCache(registry, build)
        self._use(self._cache.load_usable())

    def check_health(self) -> None:
        """Runs a smoke query; Serve replaces a replica whose answer differs from the recorded one."""
        check_answers(self._stage, self._smoke)

    async def load(self, version: str) -> None:
        """Loads and checks a version."""
        self._use(await self._cache.stage(version))

    def _use(self, stage: S) -> None:
        self._stage: S = stage
        self._smoke = read_smoke(stage.bundle)[:1]  # kept: Serve asks for the replica's health all the time


class RecallReplica(StageReplica[Recaller]):
    """Stage 1."""

    def __init__(self, registry: str) -> None:
        super().__init__(registry, Recaller)

    async def recall(self, version: str, queries: list[Query]) -> list[Recalled]:
        """Returns the candidates of each query."""
        return recall(await self._cache.stage(version), queries)


class RerankReplica(StageReplica[Reranker]):
    """Stage 2."""

    def __init__(self, registry: str) -> None:
        super().__init__(registry, Reranker)

    async def rerank(self, version: str, queries: list[Query], recalled: list[Recalled]) -> list[Answer]:
        """Returns the answer to each query from its candidates."""
        return rerank(await self._cache.stage(version), queries, recalled)


class HandleStages:
    """Both stages behind Serve handles.

    Serve does not retry a call whose replica dies, so it is retried here, once; answering a query twice is harmless.
    """

    def __init__(self, recall: Handle, rerank: Handle, *, timeout_s: float) -> None:
        self._handles = [recall, rerank]
        # a handle's attribute is a new handle: created once, not per call
        self._recall, self._rerank = _plain(recall).recall, _plain(rerank).rerank
        self._timeout_s = timeout_s

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries; see `Stages`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return await self._call(version, queries)
                except RayActorError:
                    return await self._call(version, queries)
        except BackPressureError:
            raise overloaded() from None
        except TimeoutError:
            raise timed_out(self._timeout_s) from None
        except (RayActorError, DeploymentUnavailableError):
            raise unavailable() from None

    async def _call(self, version: str, queries: list[Query]) -> list[Answer]:
        recalled = self._recall.remote(version, queries)
        answers: list[Answer] = await self._rerank.remote(version, queries, recalled)
        return answers

    async def load(self, version: str) -> None:
        """Loads a version in every replica of both stages."""
        calls = [handle.broadcast("load", version) for handle in self._handles]
        await asyncio.gather(*(call.results_async(timeout_s=LOAD_TIMEOUT_S) for call in calls))


def _plain(handle: Handle) -> Handle:
    """Returns a handle that uses plain pickle: Serve's default searches every message for code to ship."""
    return handle.options(request_serialization="pickle", response_serialization="pickle")


@serve.ingress()
class Ingress:
    """The HTTP application; without handles, both stages run in this replica.

    Args:
        registry: Directory of bundles.
        limits: The recipe's `serve` section.
        recall: Handle of the recall deployment.
        rerank: Handle of the rerank deployment.
    """

    def __init__(
        self, registry: str, limits: ServeRecipe, recall: Handle | None = None, rerank: Handle | None = None
    ) -> None:
        stages: Stages
        if recall is None or rerank is None:
            cache = BundleCache(registry, Recommender)
            stages, max_calls = LocalStages(cache), 1
            live = LiveBundle(cache, stages)
        else:
            # two calls per replica: one is computed while the other travels
            max_calls = 2 * limits.rerank_replicas
            stages = HandleStages(recall, rerank, timeout_s=limits.timeout_s)
            live = LiveBundle(BundleCache(registry, no_stage), stages)
        self._api = Api(live, stages, limits, max_calls=max_calls)
        self._api.all_replicas = self._metrics_of_all
        self._self: Handle | None = None

    def check_health(self) -> None:
        """Raises if new versions are no longer followed; Serve then replaces the replica."""
        self._api.live.check_following()

    async def own_metrics(self) -> list[Metric]:
        """Returns what this replica has counted; the replica that is scraped asks all."""
        return self._api.own_metrics()

    async def _metrics_of_all(self) -> list[list[Metric]]:
        if self._self is None:
            own = serve.get_replica_context()
            self._self = serve.get_deployment_handle(own.deployment, own.app_name)
        answers = await self._self.broadcast("own_metrics").results_async(timeout_s=SCRAPE_S, return_exceptions=True)
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the app; Serve calls this after the constructor."""
        return make_app(self._api)
