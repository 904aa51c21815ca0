"""Requests to the app over local stages, without a server and without Ray."""

import asyncio
from typing import Any

import httpx

from ray_recsys.config import ServeRecipe
from ray_recsys.core.recommending.recommender import Recommender
from ray_recsys.serving.api import Api
from ray_recsys.serving.app import make_app
from ray_recsys.serving.bundles import BundleCache
from ray_recsys.serving.live import LiveBundle
from ray_recsys.serving.stages import LocalStages
from ray_recsys.storage.location import LocationLike


def local_api(registry: LocationLike, limits: ServeRecipe | None = None) -> Api:
    """Returns the API of a registry's live bundle with both stages in this process."""
    cache = BundleCache(registry, Recommender)
    stages = LocalStages(cache)
    return Api(LiveBundle(cache, stages), stages, limits or ServeRecipe(), max_calls=1)


class AppClient:
    """Sends requests to an app one at a time, always in the same event loop."""

    def __init__(self, api: Api) -> None:
        transport = httpx.ASGITransport(make_app(api), raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")
        self._loop = asyncio.new_event_loop()

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Returns the answer; options are httpx's."""
        return self._loop.run_until_complete(self._client.request(method, url, **options))

    def close(self) -> None:
        """Ends the event loop and its threads."""
        self._loop.run_until_complete(self._client.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
