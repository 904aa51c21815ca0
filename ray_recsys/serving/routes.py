"""The API's routes that answer with items: recommendations, scores and similar items."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ray_recsys.serving.answers import ItemWriter
from ray_recsys.serving.api import Api
from ray_recsys.serving.gateway import read_body
from ray_recsys.serving.problems import MEDIA_TYPE
from ray_recsys.serving.resolve import find_id
from ray_recsys.serving.schemas import (
    BatchRequest,
    BatchResponse,
    ProblemBody,
    RecommendRequest,
    RecommendResponse,
    ScoreRequest,
    ScoreResponse,
    SimilarResponse,
)

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemBody, "description": text, "content": {MEDIA_TYPE: {}}}
    for status, text in (
        (400, "Malformed JSON"),
        (401, "No valid API key"),
        (403, "The key lacks the scope, or there are no keys and the caller is on another machine"),
        (404, "Unknown id"),
        (409, "The maximum number of lists is reached"),
        (413, "Body too large"),
        (421, "The Host header is not served here"),
        (422, "Invalid value"),
        (429, "The key has called more often than its rate; retry after Retry-After seconds"),
        (503, "Overloaded, timed out or restarting; retry after Retry-After seconds"),
    )
}


_OF_ANY_ROUTE = (401, 403, 421, 422, 429, 503)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of a route's problems by status: these, and those that any route may answer with."""
    return {status: _PROBLEMS[status] for status in sorted({*_OF_ANY_ROUTE, *statuses})}


StringIds = Annotated[
    bool, Query(description="Write all ids as strings, for clients that round integers above 2^53, such as JavaScript")
]


def body_schema(body: type[BaseModel]) -> dict[str, Any]:
    """Returns the description of the JSON body of a route that reads it itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    return {"requestBody": {"content": content, "required": True}}


def _described(body: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Returns the description of a route that reads a body of JSON itself."""
    return {
        "response_model": answer,
        "responses": problems(400, 404, 413),
        "openapi_extra": body_schema(body),
    }


def recommend_routes(api: Api) -> APIRouter:
    """Returns the routes that recommend."""
    router = APIRouter(tags=["recommend"])
    limited_k = Annotated[int, Query(ge=1, le=api.limits.max_k, description="Number of items")]

    @router.post("/v1/recommend", **_described(RecommendRequest, RecommendResponse))
    async def recommend(request: Request) -> Response:
        """Recommends items to a user, from a history, or to an anonymous user."""
        return await api.recommend_from(await read_body(request.receive))

    @router.post("/v1/recommend/batch", **_described(BatchRequest, BatchResponse))
    async def recommend_batch(request: Request) -> Response:
        """Recommends items to up to 256 users."""
        return await api.recommend_batch(BatchRequest.model_validate_json(await read_body(request.receive)))

    @router.post("/v1/score", **_described(ScoreRequest, ScoreResponse))
    async def score(request: Request) -> Response:
        """Scores given items for a user."""
        return await api.score(ScoreRequest.model_validate_json(await read_body(request.receive)))

    @router.get(
        "/v1/recommend/{user_id:path}",
        response_model=RecommendResponse,
        responses=problems(404),  # an id with a line break matches no path: POST it
    )
    async def recommend_to_user(user_id: str, k: limited_k = 10, string_ids: StringIds = False) -> Response:
        """Recommends items that a user has not seen."""
        return await api.recommend(RecommendRequest(user_id=user_id, k=k, string_ids=string_ids))

    @router.get(
        "/v1/similar/{item_id:path}",
        response_model_exclude_none=True,
        responses=problems(404),
    )
    def similar(item_id: str, k: limited_k = 10, string_ids: StringIds = False) -> SimilarResponse:
        """Returns the items most similar to an item, no more than the bundle stores per item."""
        bundle = api.live.bundle
        writer = ItemWriter(bundle, string_ids)
        item_idx = find_id(bundle.catalogue.vocabulary, item_id, "item_id", "items")
        item = writer.items([item_idx])[0]
        found = writer.scored(*bundle.neighbours.of(item_idx, k))
        return SimilarResponse(item=item, items=found, bundle=bundle.version)

    return router
