"""The HTTP API over two stages, wherever these run; the page is at `/`, the API's description at `/docs`.

This module does not know Ray: the same app answers in a replica of the graph, in a test and in a benchmark.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response

from ray_recsys import __version__
from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.bundle import BundleManifest
from ray_recsys.serving.coalescer import Coalescer
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.problems import MEDIA_TYPE, Problem, answer_problems, unknown_id
from ray_recsys.serving.requests import check_limit, resolve, show_items, show_scored
from ray_recsys.serving.schemas import (
    Health,
    ItemsResponse,
    ProblemBody,
    RecommendRequest,
    RecommendResponse,
    SimilarResponse,
    Timings,
    UsersResponse,
)
from ray_recsys.serving.stages import Stages
from ray_recsys.serving.web_files import web_routes

MAX_BODY_BYTES = 1 << 20
MAX_LISTED = 1000

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody, "description": text, "content": {MEDIA_TYPE: {}}}
    for status, text in ((404, "The bundle does not know an id"), (422, "A value is not allowed"))
}
_K = Annotated[int, Query(ge=1, description="How many items")]
_Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="At most so many")]


class Api:
    """What the routes share: the live bundle, the stages and the recipe's limits."""

    def __init__(self, registry: Path, stages: Stages, limits: ServeRecipe, *, max_calls: int) -> None:
        self.live = LiveBundle(registry, stages)
        self.limits = limits
        self._coalescer = Coalescer(stages, max_calls=max_calls, max_waiting=limits.max_waiting)

    async def recommend(self, request: RecommendRequest) -> Response:
        """Returns the answer to a request, made by one bundle from end to end."""
        start_s = time.perf_counter()
        bundle = self.live.bundle
        resolved = resolve(request, bundle, self.limits)
        answer = await self._coalescer.answer(bundle.version, resolved.query)
        best = answer.recommendations
        items = show_scored(bundle, best.item_idx, best.scores)
        total_ms = (time.perf_counter() - start_s) * 1e3
        response = RecommendResponse(
            items=items,
            source=best.source,
            bundle=bundle.version,
            num_unknown_history=resolved.num_unknown_history,
            timings_ms=Timings(
                recall=round(answer.recall_ms, 3), rerank=round(answer.rerank_ms, 3), total=round(total_ms, 3)
            ),
        )
        # written here: FastAPI would validate its own answer again
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")


def make_app(api: Api) -> FastAPI:
    """Returns the app; it follows the registry while it runs."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(api.live.follow())
        try:
            yield
        finally:
            following.cancel()

    app = FastAPI(
        title="ray_recsys",
        version=__version__,
        description="Recommendations in two stages: recall from the whole catalogue, rerank by NeuMF.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their code from the internet; ours is among the web files
        redoc_url=None,
    )
    answer_problems(app)
    _add_recommend_routes(app, api)
    _add_catalogue_routes(app, api)
    app.include_router(web_routes())
    _describe(app, api.limits)
    return app


def _add_recommend_routes(app: FastAPI, api: Api) -> None:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/RecommendRequest"}}}

    @app.post(
        "/v1/recommend",
        response_model=RecommendResponse,
        response_model_exclude_none=True,
        responses={**_PROBLEMS, 503: {**_PROBLEMS[422], "description": "Overloaded; try again"}},
        openapi_extra={"requestBody": {"content": body, "required": True}},
        tags=["recommend"],
    )
    async def recommend(request: Request) -> Response:
        """Recommends to a user, to a history, or to nobody in particular."""
        return await api.recommend(RecommendRequest.model_validate_json(await _read_body(request)))

    @app.get(
        "/v1/recommend/{user_id:path}",
        response_model=RecommendResponse,
        response_model_exclude_none=True,
        responses=_PROBLEMS,
        tags=["recommend"],
    )
    async def recommend_to_user(user_id: str, k: _K = 10) -> Response:
        """Recommends to a user what they have not seen."""
        return await api.recommend(RecommendRequest(user_id=user_id, k=k))

    @app.get("/v1/similar/{item_id:path}", response_model_exclude_none=True, responses=_PROBLEMS, tags=["recommend"])
    def similar(item_id: str, k: _K = 10) -> SimilarResponse:
        """Finds the items most similar to one; at most as many as the bundle keeps per item."""
        check_limit("k", k, api.limits.max_k)
        bundle = api.live.bundle
        item_idx = bundle.catalogue.vocabulary.find(item_id)
        if item_idx is None:
            raise unknown_id("item_id", item_id, "items")
        neighbours = bundle.neighbours
        best, scores = neighbours.item_idx[item_idx, :k], neighbours.scores[item_idx, :k]
        item = show_items(bundle, [item_idx])[0]
        return SimilarResponse(item=item, items=show_scored(bundle, best, scores), bundle=bundle.version)


def _add_catalogue_routes(app: FastAPI, api: Api) -> None:
    @app.get("/v1/bundle", tags=["bundle"])
    def bundle() -> BundleManifest:
        """Tells what the live bundle is."""
        return api.live.bundle.manifest

    @app.get("/v1/users", responses={422: _PROBLEMS[422]}, tags=["bundle"])
    def users(limit: _Limit = 20) -> UsersResponse:
        """Lists some users of the live bundle."""
        vocabulary = api.live.bundle.users
        return UsersResponse(users=vocabulary.ids_of(np.arange(min(limit, len(vocabulary)))).to_pylist())

    @app.get("/v1/users/{user_id:path}/seen", response_model_exclude_none=True, responses=_PROBLEMS, tags=["bundle"])
    def seen(user_id: str, limit: _Limit = 50) -> ItemsResponse:
        """Lists what a user has seen, the latest first."""
        bundle = api.live.bundle
        user_idx = bundle.users.find(user_id)
        if user_idx is None:
            raise unknown_id("user_id", user_id, "users")
        return ItemsResponse(items=show_items(bundle, bundle.seen.of(user_idx)[::-1][:limit]))

    @app.get("/v1/items", response_model_exclude_none=True, responses={422: _PROBLEMS[422]}, tags=["bundle"])
    def items(query: Annotated[str, Query(max_length=200)] = "", limit: _Limit = 20) -> ItemsResponse:
        """Finds items by a part of their title, the most popular first."""
        bundle = api.live.bundle
        return ItemsResponse(items=show_items(bundle, bundle.catalogue.search_titles(query, limit)))

    @app.get("/healthz", tags=["bundle"])
    async def healthz() -> Health:
        """Tells that the graph answers."""
        return Health(bundle=api.live.bundle.version)


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Problem(
                413,
                "too-large",
                "The body is too large",
                f"the body has more than {MAX_BODY_BYTES} bytes",
                field="body",
                value=f"over {MAX_BODY_BYTES} bytes",
                limit=MAX_BODY_BYTES,
            )
    return bytes(body)


def _describe(app: FastAPI, limits: ServeRecipe) -> None:
    """Puts the request's schema, with the recipe's limits, into the API's description."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            request = RecommendRequest.model_json_schema(ref_template="#/components/schemas/{model}")
            properties = request["properties"]
            properties["k"]["maximum"] = limits.max_k
            properties["num_candidates"]["anyOf"][0]["maximum"] = limits.max_candidates
            for name in ("history", "exclude_items"):
                properties[name]["maxItems"] = limits.max_history
            schema["components"]["schemas"]["RecommendRequest"] = request
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the description
