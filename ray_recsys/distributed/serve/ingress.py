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
from ray_recsys.serving.api import Api, make_app
from ray_recsys.serving.problems import late, overloaded, unavailable
from ray_recsys.serving.stages import Answer, LocalStages, Stages

LOAD_TIMEOUT_S = 300.0
Handle = DeploymentHandle[Any]


class HandleStages:
    """The stages behind Serve handles.

    A replica may die under a call. Serve does not send the call to another by itself, so it is sent once more here; to
    compute an answer twice does no harm.
    """

    def __init__(self, recall: Handle, rerank: Handle, *, timeout_s: float) -> None:
        self._handles = [recall, rerank]
        # a handle's attribute is another handle: made once, not for every call
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
            raise late(self._timeout_s) from None
        except (RayActorError, DeploymentUnavailableError):
            raise unavailable() from None

    async def _call(self, version: str, queries: list[Query]) -> list[Answer]:
        recalled = self._recall.remote(version, queries)
        reranked: list[Answer] = await self._rerank.remote(version, queries, recalled)
        return reranked

    async def load(self, version: str) -> None:
        """Loads a version in every replica of both stages."""
        calls = [handle.broadcast("load", version) for handle in self._handles]
        await asyncio.gather(*(call.results_async(timeout_s=LOAD_TIMEOUT_S) for call in calls))


def _plain(handle: Handle) -> Handle:
    """Returns a handle that sends plain pickles: by default Serve looks for code to take along in every message."""
    return handle.options(request_serialization="pickle", response_serialization="pickle")


@serve.ingress()
class Ingress:
    """Answers HTTP by the live bundle of a registry."""

    def __init__(
        self, registry: str, limits: ServeRecipe, recall: Handle | None = None, rerank: Handle | None = None
    ) -> None:
        stages: Stages
        if recall is None or rerank is None:
            stages, max_calls = LocalStages(Path(registry)), 1
        else:
            # two calls a replica: one computes while the other is under way
            max_calls = 2 * limits.rerank_replicas
            stages = HandleStages(recall, rerank, timeout_s=limits.timeout_s)
        self._api = Api(Path(registry), stages, limits, max_calls=max_calls)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Returns the app once the bundle is open."""
        return make_app(self._api)
