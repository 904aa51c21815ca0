"""The ingress deployment: HTTP in, calls to the stages' replicas in between, HTTP out."""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.recommender import Query
from ray_recsys.distributed.serving.api import Api, make_app
from ray_recsys.distributed.serving.problems import overloaded, unavailable
from ray_recsys.distributed.serving.stages import Answer

LOAD_TIMEOUT_S = 300.0
Handle = DeploymentHandle[Any]


class HandleStages:
    """The stages behind Serve handles; without a recall handle, rerank's replicas run both.

    A replica may die under a call. Serve does not send the call to another by itself, so it is sent once more here; to
    compute an answer twice does no harm.
    """

    def __init__(self, recall: Handle | None, rerank: Handle) -> None:
        self._recall, self._rerank = recall, rerank

    async def answer(self, version: str, queries: list[Query]) -> list[Answer]:
        """Returns the answers to queries; see `Stages`."""
        try:
            try:
                return await self._call(version, queries)
            except RayActorError:
                return await self._call(version, queries)
        except BackPressureError:
            raise overloaded() from None
        except (RayActorError, DeploymentUnavailableError):
            raise unavailable() from None

    async def _call(self, version: str, queries: list[Query]) -> list[Answer]:
        if self._recall is None:
            answers: list[Answer] = await self._rerank.recall_and_rerank.remote(version, queries)
            return answers
        # the response is handed on unread: candidates go from recall to rerank, not through here
        recalled = self._recall.recall.remote(version, queries)
        reranked: list[Answer] = await self._rerank.rerank.remote(version, queries, recalled)
        return reranked

    async def load(self, version: str) -> None:
        """Loads a version in every replica of both stages."""
        handles = [handle for handle in (self._recall, self._rerank) if handle is not None]
        calls = [handle.broadcast("load", version) for handle in handles]
        await asyncio.gather(*(call.results_async(timeout_s=LOAD_TIMEOUT_S) for call in calls))


@serve.ingress()
class Ingress:
    """Answers HTTP by the live bundle of a registry."""

    def __init__(self, registry: str, limits: ServeRecipe, recall: Handle | None, rerank: Handle) -> None:
        stages = HandleStages(recall, rerank)
        # two calls a replica: one computes while the other is under way
        self._api = Api(Path(registry), stages, limits, max_calls=2 * limits.rerank_replicas)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the app once the bundle is open."""
        return make_app(self._api)
