"""Requests to the app over local stages, without a server and without Ray."""

import asyncio
from typing import Any

import httpx

from ray_recsys.serving.api import Api, make_app


class AppClient:
    """Sends requests to an app one at a time, always in the same event loop."""

    def __init__(self, api: Api) -> None:
        transport = httpx.ASGITransport(make_app(api), raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://app")
        self._loop = asyncio.new_event_loop()

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Returns the answer; options are httpx's."""
        return self._loop.run_until_complete(self._client.request(method, url, **options))

    def close(self) -> None:
        """Ends the event loop and its threads."""
        self._loop.run_until_complete(self._client.aclose())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
