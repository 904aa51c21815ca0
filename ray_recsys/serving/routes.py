"""The API's routes that answer with items: recommendations, scores and similar items."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.recommender import Query as RecallQuery
from ray_recsys.serving.answers import ItemWriter, explain
from ray_recsys.serving.coalescer import Coalescer
from ray_recsys.serving.gateway import read_body
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.metrics import Metrics
from ray_recsys.serving.problems import MEDIA_TYPE
from ray_recsys.serving.resolve import find_id, resolve, resolve_scores
from ray_recsys.serving.schemas import (
    BatchEntry,
    BatchRequest,
    BatchResponse,
    ItemScore,
    ProblemBody,
    RecommendRequest,
    RecommendResponse,
    ScoreRequest,
    ScoreResponse,
    SimilarResponse,
    Timings,
)
from ray_recsys.serving.stages import Answer, Stages

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


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of a route's problems by status."""
    return {status: _PROBLEMS[status] for status in statuses}


StringIds = Annotated[
    bool, Query(description="Write all ids as strings, for clients that round integers above 2^53, such as JavaScript")
]


class Api:
    """What the routes share: the live bundle, the coalescer in front of the stages, and the recipe's limits."""

    def __init__(self, live: LiveBundle, stages: Stages, limits: ServeRecipe, *, max_calls: int) -> None:
        self.live = live
        self.limits = limits
        self.metrics = Metrics()
        self.coalescer = Coalescer(
            stages, max_calls=max_calls, max_waiting=limits.max_waiting, called=self.metrics.batches.add
        )

    async def ask(self, version: str, query: RecallQuery) -> Answer:
        """Returns the stages' answer to a query by one version.

        Raises:
            Problem: The queue is full, or the stages are unavailable.
        """
        answer = await self.coalescer.answer(version, query)
        self.metrics.answered(query, answer)
        return answer

    async def recommend_batch(self, request: BatchRequest) -> Response:
        """Returns the recommendations to many users, all made by one bundle version."""
        bundle = self.live.bundle
        singles = [
            RecommendRequest(user_id=user_id, k=request.k, exclude_seen=request.exclude_seen, category=request.category)
            for user_id in request.user_ids
        ]
        queries = [resolve(one, bundle, self.limits).query for one in singles]
        answers = await self.coalescer.answer_all(bundle.version, queries)
        writer, results = ItemWriter(bundle, request.string_ids), []
        for user_id, query, answer in zip(request.user_ids, queries, answers, strict=True):
            self.metrics.answered(query, answer)
            best = answer.recommendations
            shown = str(user_id) if request.string_ids else user_id
            items = writer.recommended(best.item_idx, best.scores)
            results.append(BatchEntry(user_id=shown, items=items, source=best.source))
        return _json(BatchResponse(results=results, bundle=bundle.version))

    async def score(self, request: ScoreRequest) -> Response:
        """Returns the scores of given items."""
        bundle = self.live.bundle
        query, found = resolve_scores(request, bundle, self.limits)
        best = (await self.ask(bundle.version, query)).recommendations
        score_of = dict(zip(best.item_idx.tolist(), best.scores.tolist(), strict=True))
        scores = [
            ItemScore(item_id=str(item_id) if request.string_ids else item_id, score=score_of[idx] if known else None)
            for item_id, idx, known in zip(request.item_ids, found.idx.tolist(), found.is_known.tolist(), strict=True)
        ]
        body = ScoreResponse(scores=scores, source=best.source, bundle=bundle.version)
        return Response(body.model_dump_json(), media_type="application/json")

    async def recommend_from(self, body: bytes) -> Response:
        """Returns the response to a request's body; see `recommend`."""
        return await self.recommend(RecommendRequest.model_validate_json(body))

    async def recommend(self, request: RecommendRequest) -> Response:
        """Returns the response to a request, made by one bundle version."""
        start_s = time.perf_counter()
        bundle = self.live.bundle
        resolved = resolve(request, bundle, self.limits)
        answer = await self.ask(bundle.version, resolved.query)
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
        return _json(response)


def _json(body: BaseModel) -> Response:
    """Serialises a response: FastAPI would validate it again."""
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")


def _described(body: type[BaseModel], answer: type[BaseModel]) -> dict[str, Any]:
    """Returns the description of a route that reads a body of JSON itself."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    return {
        "response_model": answer,
        "responses": problems(400, 413, 422, 503),
        "openapi_extra": {"requestBody": {"content": content, "required": True}},
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

    @router.get("/v1/recommend/{user_id:path}", response_model=RecommendResponse, responses=problems(422, 503))
    async def recommend_to_user(user_id: str, k: limited_k = 10, string_ids: StringIds = False) -> Response:
        """Recommends items that a user has not seen."""
        return await api.recommend(RecommendRequest(user_id=user_id, k=k, string_ids=string_ids))

    @router.get("/v1/similar/{item_id:path}", response_model_exclude_none=True, responses=problems(404, 422))
    def similar(item_id: str, k: limited_k = 10, string_ids: StringIds = False) -> SimilarResponse:
        """Returns the items most similar to an item, no more than the bundle stores per item."""
        bundle = api.live.bundle
        writer = ItemWriter(bundle, string_ids)
        item_idx = find_id(bundle.catalogue.vocabulary, item_id, "item_id", "items")
        item = writer.items([item_idx])[0]
        found = writer.scored(*bundle.neighbours.of(item_idx, k))
        return SimilarResponse(item=item, items=found, bundle=bundle.version)

    return router
