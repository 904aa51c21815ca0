"""State of the routes: the live bundle and its arms, the stages, and the recipe's limits."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from prometheus_client.core import Metric
from pydantic import BaseModel
from starlette.responses import Response

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.arms import LIVE
from ray_recsys.core.recommending.recommender import Query as RecallQuery
from ray_recsys.core.vocabulary import ExternalId
from ray_recsys.serving.answers import ItemWriter, explain
from ray_recsys.serving.coalescer import Coalescer
from ray_recsys.serving.gateway import REQUEST_ID
from ray_recsys.serving.impressions import Impression, ImpressionSink
from ray_recsys.serving.live import LiveArm, LiveBundle
from ray_recsys.serving.metrics import Metrics, text_of
from ray_recsys.serving.resolve import resolve, resolve_scores
from ray_recsys.serving.schemas import (
    BatchEntry,
    BatchRequest,
    BatchResponse,
    Item,
    ItemScore,
    RecommendRequest,
    RecommendResponse,
    ScoreRequest,
    ScoreResponse,
    Timings,
)
from ray_recsys.serving.stages import Answer, Stages
from ray_recsys.serving.stock import Stock
from ray_recsys.serving.tracing import recorder

SCRAPE_S = 2.0  # that other replicas have to tell what they counted
MAX_SHADOWS = 16  # answers of shadows under way; requests beyond are answered without

logger = logging.getLogger(__name__)


class Api:
    """State that the routes share: the live bundle, the coalescer in front of the stages, and the recipe's limits."""

    def __init__(self, live: LiveBundle, stages: Stages, limits: ServeRecipe, *, max_calls: int) -> None:
        self.live = live
        self.limits = limits
        self.metrics = Metrics()
        self.coalescer = Coalescer(
            stages, max_calls=max_calls, max_waiting=limits.max_waiting, called=self.metrics.batches.add
        )
        self.impressions = _sink(limits)
        self.stock = Stock(live.lists)
        self.record = recorder()
        self._shadows = Shadows(self.coalescer, self.metrics, limits)
        self.num_in_flight: Callable[[], int] = lambda: 0
        self.all_replicas: Callable[[], Awaitable[Sequence[Sequence[Metric]]]] | None = None
        """Returns the metrics of every replica, this one included; None: there is only this one."""

    def own_metrics(self) -> list[Metric]:
        """Returns what this replica has counted."""
        waiting, in_flight = self.coalescer.num_waiting, self.num_in_flight()
        return self.metrics.families(self.live, self.impressions, num_waiting=waiting, num_in_flight=in_flight)

    async def scrape(self) -> bytes:
        """Returns the text of /metrics: of all replicas, or of this one alone if the others cannot be asked."""
        replicas: Sequence[Sequence[Metric]] = []
        if self.all_replicas is not None:
            try:
                async with asyncio.timeout(SCRAPE_S):
                    replicas = await self.all_replicas()
            except Exception as error:  # noqa: BLE001  (a metric less is better than none)
                logger.warning("other replicas' metrics: %s: %s", type(error).__name__, error)
        return text_of(replicas or [self.own_metrics()])

    def start(self) -> None:
        """Follows the registry and writes impressions, on the running event loop, until `stop`."""
        self.live.start()
        if self.impressions is not None:
            self.impressions.start()

    def stop(self) -> None:
        """Stops both; pending impressions are written."""
        self.live.stop()
        if self.impressions is not None:
            self.impressions.stop()

    async def ask(self, arm: LiveArm, query: RecallQuery) -> Answer:
        """Returns the stages' answer to a query by an arm's version.

        Raises:
            Problem: The queue is full, or the stages are unavailable.
        """
        answer = await self.coalescer.answer(arm.bundle.version, query)
        self.metrics.answered(query, answer, arm.name)
        return answer

    async def recommend_batch(self, request: BatchRequest) -> Response:
        """Returns the recommendations to many users, all made by the live version, whatever their arms."""
        bundle = self.live.bundle
        singles = [
            RecommendRequest(user_id=user_id, k=request.k, exclude_seen=request.exclude_seen, category=request.category)
            for user_id in request.user_ids
        ]
        queries = [resolve(one, bundle, self.limits).query for one in singles]
        answers = await self.coalescer.answer_all(bundle.version, queries)
        writer, results = ItemWriter(bundle, request.string_ids), []
        for user_id, query, answer in zip(request.user_ids, queries, answers, strict=True):
            self.metrics.answered(query, answer, LIVE)
            best = answer.recommendations
            shown = str(user_id) if request.string_ids else user_id
            items = writer.recommended(best.item_idx, best.scores)
            results.append(BatchEntry(user_id=shown, items=items, source=best.source))
        return _json(BatchResponse(results=results, bundle=bundle.version))

    async def score(self, request: ScoreRequest) -> Response:
        """Returns the scores of given items."""
        arm, _ = self.live.choose(request.user_id)
        bundle = arm.bundle
        query, found = resolve_scores(request, bundle, self.limits)
        best = (await self.ask(arm, query)).recommendations
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
        """Returns the response to a request, made by one version: the one of the user's arm."""
        start_s = time.perf_counter()
        arm, shadow = self.live.choose(request.user_id)
        bundle = arm.bundle
        listed = None if request.list is None else await self.stock.items(request.list, bundle)
        resolved = resolve(request, bundle, self.limits, listed)
        answer = await self.ask(arm, resolved.query)
        best = answer.recommendations
        because = explain(bundle, resolved.query, best.item_idx) if request.explain else None
        items = ItemWriter(bundle, request.string_ids).recommended(best.item_idx, best.scores, because)
        if shadow is not None and request.list is None:
            self._shadows.start(shadow, request, [item.item_id for item in items])
        if self.impressions is not None:
            self.impressions.add(_impression(arm, request, best.source, items))
        total_s = time.perf_counter() - start_s
        self.metrics.arms[arm.name].add(total_s)
        if self.record is not None:
            about = {"bundle": bundle.version, "arm": arm.name, "source": best.source, "request_id": REQUEST_ID.get()}
            self.record(total_s, answer.recall_ms, answer.rerank_ms, about)
        response = RecommendResponse(
            items=items,
            source=best.source,
            bundle=bundle.version,
            arm=arm.name,
            num_unknown_history=resolved.num_unknown_history,
            timings_ms=Timings(
                recall=round(answer.recall_ms, 3), rerank=round(answer.rerank_ms, 3), total=round(total_s * 1e3, 3)
            ),
        )
        return _json(response)


def _sink(limits: ServeRecipe) -> ImpressionSink | None:
    if limits.impressions is None:
        return None
    return ImpressionSink(Path(limits.impressions).expanduser(), limits.impressions_max_gb * 1e9)


class Shadows:
    """Shadow answers of arms: the share of the shown items that they also recommend goes into the metrics.

    Args:
        coalescer: In front of the stages.
        metrics: Where they are counted.
        limits: The recipe's `serve` section.
    """

    def __init__(self, coalescer: Coalescer, metrics: Metrics, limits: ServeRecipe) -> None:
        self._coalescer, self._metrics, self._limits = coalescer, metrics, limits
        self._running: set[asyncio.Task[None]] = set()

    def start(self, arm: LiveArm, request: RecommendRequest, shown: Sequence[ExternalId]) -> None:
        """Schedules an arm's answer to a request, unless too many are pending."""
        if len(self._running) >= MAX_SHADOWS:
            self._metrics.num_shadows_skipped += 1
            return
        task = asyncio.create_task(self._answer(arm, request, shown))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, arm: LiveArm, request: RecommendRequest, shown: Sequence[ExternalId]) -> None:
        start_s = time.perf_counter()
        try:
            resolved = resolve(request, arm.bundle, self._limits)
            answer = await self._coalescer.answer(arm.bundle.version, resolved.query)
        except Exception as error:  # noqa: BLE001  (no caller waits for it)
            logger.warning("arm %s in the shadow: %s", arm.name, error)
            self._metrics.shadow_failures[arm.name] += 1
            return
        items = ItemWriter(arm.bundle, request.string_ids).items(answer.recommendations.item_idx)
        shared = len({item.item_id for item in items} & set(shown)) / max(1, len(shown))
        self._metrics.shadows[arm.name].add(shared)
        self._metrics.arms[arm.name].add(time.perf_counter() - start_s)


def _impression(arm: LiveArm, request: RecommendRequest, source: str, items: Sequence[Item]) -> Impression:
    shown = [item.item_id for item in items]
    return Impression(REQUEST_ID.get(), time.time(), arm.name, arm.bundle.version, request.user_id, source, shown)


def _json(body: BaseModel) -> Response:
    """Serialises a response: FastAPI would validate it again."""
    return Response(body.model_dump_json(exclude_none=True), media_type="application/json")
