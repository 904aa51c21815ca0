"""The ASGI application: the API, the page at `/`, the API reference at `/docs`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST

from ray_recsys import __version__
from ray_recsys.config import ServeRecipe
from ray_recsys.serving.api import Api
from ray_recsys.serving.browse import bundle_routes, health_routes
from ray_recsys.serving.gateway import App, Gateway
from ray_recsys.serving.keys import keys_of_environment
from ray_recsys.serving.list_routes import list_routes
from ray_recsys.serving.problems import answer_problems
from ray_recsys.serving.routes import recommend_routes
from ray_recsys.serving.schemas import BatchRequest, ListRequest, RecommendRequest, ScoreRequest
from ray_recsys.serving.web_files import web_routes


def make_app(api: Api) -> FastAPI:
    """Returns the app; while it runs, it follows the registry.

    Raises:
        InputError: The file of API keys cannot be used.
    """
    keys = keys_of_environment()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        api.start()
        try:
            yield
        finally:
            api.stop()

    app = FastAPI(
        title="ray_recsys",
        version=__version__,
        description="Recommendations in two stages: recall from the whole catalogue, then rerank.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from a CDN; ours is one of the static files
        redoc_url=None,
    )
    answer_problems(app)
    for router in (recommend_routes(api), bundle_routes(api), list_routes(api), health_routes(api), web_routes()):
        app.include_router(router)
    _describe(app, api.limits)

    def wrap(inner: App) -> Gateway:
        gateway = Gateway(inner, api.limits, api.metrics, keys, {("POST", "/v1/recommend"): api.recommend_from})
        api.num_in_flight = lambda: gateway.num_in_flight
        return gateway

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(await api.scrape(), media_type=CONTENT_TYPE_LATEST)

    app.add_middleware(wrap)
    return app


def _describe(app: FastAPI, limits: ServeRecipe) -> None:
    """Adds the request's schema, with the recipe's limits, to the OpenAPI description."""

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
            properties["allowed_items"]["anyOf"][0]["maxItems"] = limits.max_allowed
            schemas = schema["components"]["schemas"]
            schemas["RecommendRequest"] = request
            for model in (BatchRequest, ScoreRequest, ListRequest):
                schemas[model.__name__] = model.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas["BatchRequest"]["properties"]["k"]["maximum"] = limits.max_k
            schemas["ScoreRequest"]["properties"]["item_ids"]["maxItems"] = limits.max_candidates
            schemas["ScoreRequest"]["properties"]["history"]["maxItems"] = limits.max_history
            schemas["ListRequest"]["properties"]["item_ids"]["maxItems"] = limits.max_list_items
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the description
