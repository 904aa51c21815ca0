"""Microseconds of one HTTP request in process: the whole ASGI app without a server, medians over rounds.

    python -m benchmarks.serve_request [--rounds 7] [--requests 400]

Compare two checkouts by running this file in each, in turns: `PYTHONPATH=OTHER python benchmarks/serve_request.py`.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ray_recsys.serving.app import make_app
from tests.app_client import local_api
from tests.bundles import publish_bundle
from tests.factories import make_prepared_set

BODIES = {"user": {"user_id": "user-00007"}, "history": {"history": ["item-0003", "item-0007"]}, "nobody": {}}


async def _request(app: Callable[..., Awaitable[None]], body: bytes) -> int:
    headers = [(b"host", b"127.0.0.1:8000"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/recommend",
        "raw_path": b"/v1/recommend",
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status


async def _measure(app: Any, body: bytes, num_requests: int) -> float:
    times_us = []
    for _ in range(num_requests):
        start_s = time.perf_counter()
        status = await _request(app, body)
        times_us.append((time.perf_counter() - start_s) * 1e6)
        assert status == 200, status
    return statistics.median(times_us)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        prepared = make_prepared_set(Path(home) / "prepared", num_users=500, num_items=3000)
        publish_bundle(Path(home) / "registry", prepared)
        app = make_app(local_api(Path(home) / "registry"))
        medians: dict[str, list[float]] = {name: [] for name in BODIES}
        for _ in range(arguments.rounds):
            for name, body in BODIES.items():
                medians[name].append(asyncio.run(_measure(app, json.dumps(body).encode(), arguments.requests)))
    print(json.dumps({name: round(min(values), 1) for name, values in medians.items()}))


if __name__ == "__main__":
    main()
