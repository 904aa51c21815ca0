"""The baseline of `serve_load`: a one-process FastAPI app on uvicorn that calls the recommender in the route."""

import sys
import time
from pathlib import Path

import torch
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import Response

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.serving.answers import ItemWriter
from ray_recsys.serving.resolve import resolve
from ray_recsys.serving.schemas import RecommendRequest, RecommendResponse, Timings


def make_bare_app(registry: Path) -> FastAPI:
    """Returns the app: the same schemas and kernel, one thread."""
    torch.set_num_threads(1)
    bundle = Registry(registry).open()
    recommender = Recommender(bundle)
    limits = ServeRecipe()
    app = FastAPI()

    @app.post("/v1/recommend")
    async def recommend(request: Request) -> Response:
        start_s = time.perf_counter()
        query = resolve(RecommendRequest.model_validate_json(await request.body()), bundle, limits).query
        candidates = recommender.recall(query)
        recalled_s = time.perf_counter()
        best = recommender.rerank(query, candidates)
        end_s = time.perf_counter()
        timings = Timings(
            recall=(recalled_s - start_s) * 1e3, rerank=(end_s - recalled_s) * 1e3, total=(end_s - start_s) * 1e3
        )
        response = RecommendResponse(
            items=ItemWriter(bundle).recommended(best.item_idx, best.scores),
            source=best.source,
            bundle=bundle.version,
            timings_ms=timings,
        )
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    return app


if __name__ == "__main__":
    uvicorn.run(make_bare_app(Path(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
