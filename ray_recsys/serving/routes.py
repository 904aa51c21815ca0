"""The API's routes: recommendations, similar items, and what the live bundle contains."""

import time
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from ray_recsys.config import ServeRecipe
from ray_recsys.core.models.registry import MODELS
from ray_recsys.serving.answers import ItemWriter, explain
from ray_recsys.serving.coalescer import Coalescer
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.problems import MEDIA_TYPE, Problem
from ray_recsys.serving.resolve import check_limit, find_id, resolve
from ray_recsys.serving.schemas import (
    BundleResponse,
    Health,
    ItemsResponse,
    ProblemBody,
    RecommendRequest,
    RecommendResponse,
    SeenResponse,
    SimilarResponse,
    Timings,
    UsersResponse,
)
from ray_recsys.serving.stages import Stages

MAX_BODY_BYTES = 1 << 20
MAX_LISTED = 1000

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody, "description": text, "content": {MEDIA_TYPE: {}}}
    for status, text in (
        (400, "Malformed JSON"),
        (404, "Unknown id"),
        (413, "Body too large"),
        (422, "Invalid value"),
        (503, "Overloaded, timed out or restarting; retry after Retry-After seconds"),
    )
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _PROBLEMS[status] for status in statuses}


_K = Annotated[int, Query(ge=1, description="Number of items")]
_Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="Maximum number of results")]
_StringIds = Annotated[
    bool, Query(description="Write all ids as strings, for clients that round integers above 2^53, such as JavaScript")
]


class Api:
    """What the routes share: the live bundle, the coalescer in front of the stages, and the recipe's limits."""

    def __init__(self, live: LiveBundle, stages: Stages, limits: ServeRecipe, *, max_calls: int) -> None:
        self.live = live
        self.limits = limits
        self._coalescer = Coalescer(stages, max_calls=max_calls, max_waiting=limits.max_waiting)

    async def recommend(self, request: RecommendRequest) -> Response:
        """Returns the response to a request, made by one bundle version."""
        start_s = time.perf_counter()
        bundle = self.live.bundle
        resolved = resolve(request, bundle, self.limits)
        answer = await self._coalescer.answer(bundle.version, resolved.query)
        best = answer.recommendations
        because = explain(bundle, resolved.query, best.item_idx) if request.explain else None
        items = ItemWriter(bundle, request.string_ids).recommended(best.item_idx, best.scores, because)
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
        # serialised here: FastAPI would validate the response again
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")


def recommend_routes(api: Api) -> APIRouter:
    """Returns the routes that recommend."""
    router = APIRouter(tags=["recommend"])
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/RecommendRequest"}}}

    @router.post(
        "/v1/recommend",
        response_model=RecommendResponse,
        responses=_problems(400, 413, 422, 503),
        openapi_extra={"requestBody": {"content": body, "required": True}},
    )
    async def recommend(request: Request) -> Response:
        """Recommends items to a user, from a history, or to an anonymous user."""
        return await api.recommend(RecommendRequest.model_validate_json(await _read_body(request)))

    @router.get("/v1/recommend/{user_id:path}", response_model=RecommendResponse, responses=_problems(422, 503))
    async def recommend_to_user(user_id: str, k: _K = 10, string_ids: _StringIds = False) -> Response:
        """Recommends items that a user has not seen."""
        return await api.recommend(RecommendRequest(user_id=user_id, k=k, string_ids=string_ids))

    @router.get("/v1/similar/{item_id:path}", response_model_exclude_none=True, responses=_problems(404, 422))
    def similar(item_id: str, k: _K = 10, string_ids: _StringIds = False) -> SimilarResponse:
        """Returns the items most similar to an item, no more than the bundle stores per item."""
        check_limit("k", k, api.limits.max_k)
        bundle = api.live.bundle
        writer = ItemWriter(bundle, string_ids)
        item_idx = find_id(bundle.catalogue.vocabulary, item_id, "item_id", "items")
        item = writer.items([item_idx])[0]
        found = writer.scored(*bundle.neighbours.of(item_idx, k))
        return SimilarResponse(item=item, items=found, bundle=bundle.version)

    return router


def bundle_routes(api: Api) -> APIRouter:
    """Returns the routes that browse the live bundle."""
    router = APIRouter(tags=["bundle"])

    @router.get("/v1/bundle")
    def bundle() -> BundleResponse:
        """Describes the live bundle."""
        manifest = api.live.bundle.manifest
        return BundleResponse(
            **manifest.model_dump(mode="json"),
            model_label=MODELS[manifest.model].label,
            recall_model_label=MODELS[manifest.recall_model].label,
        )

    @router.get("/v1/users", responses=_problems(422))
    def users(limit: _Limit = 20, string_ids: _StringIds = False) -> UsersResponse:
        """Lists users of the live bundle."""
        vocabulary = api.live.bundle.users
        ids = vocabulary.ids_of(np.arange(min(limit, len(vocabulary)))).to_pylist()
        return UsersResponse(users=[str(one) for one in ids] if string_ids else ids)

    @router.get("/v1/users/{user_id:path}/seen", response_model_exclude_none=True, responses=_problems(404, 422))
    def seen(user_id: str, limit: _Limit = 50, string_ids: _StringIds = False) -> SeenResponse:
        """Lists the items that a user has seen, latest first."""
        bundle = api.live.bundle
        user_idx = find_id(bundle.users, user_id, "user_id", "users")
        return SeenResponse(items=ItemWriter(bundle, string_ids).seen(user_idx, limit))

    @router.get("/v1/items", response_model_exclude_none=True, responses=_problems(422))
    def items(
        query: Annotated[str, Query(max_length=200, description="Part of the title")] = "",
        limit: _Limit = 20,
        string_ids: _StringIds = False,
    ) -> ItemsResponse:
        """Searches items by title, most popular first."""
        bundle = api.live.bundle
        return ItemsResponse(items=ItemWriter(bundle, string_ids).items(bundle.catalogue.search_titles(query, limit)))

    @router.get("/healthz")
    async def healthz() -> Health:
        """Reports that the service is up."""
        return Health(bundle=api.live.bundle.version)

    return router


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise Problem(
                413,
                "too-large",
                "Body too large",
                f"the body has more than {MAX_BODY_BYTES} bytes",
                field="body",
                value=f"over {MAX_BODY_BYTES} bytes",
                limit=MAX_BODY_BYTES,
            )
    return bytes(body)
