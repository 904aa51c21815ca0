"""Checks of every request before it is parsed: request id, host, admission, key, rate, size and time limits.

A plain ASGI layer: a refused request costs no routing, no body and no model.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from itertools import count
from typing import Any

from starlette.responses import Response

from ray_recsys.config import ServeRecipe
from ray_recsys.serving.keys import ApiKey, Scope, find_key, is_loopback
from ray_recsys.serving.metrics import Metrics
from ray_recsys.serving.problems import Problem, overloaded, problem_of, timed_out

MAX_BODY_BYTES = 1 << 20
_MAX_BATCH = 16
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_OPEN = ("/healthz", "/readyz")
_ROUTES: tuple[tuple[str, str, Scope], ...] = (
    ("/v1/recommend/batch", "recommend_batch", "recommend"),
    ("/v1/recommend", "recommend", "recommend"),
    ("/v1/similar", "similar", "recommend"),
    ("/v1/score", "score", "recommend"),
    ("/v1/items", "items", "recommend"),
    ("/v1/bundle", "bundle", "recommend"),
    ("/v1/users", "users", "browse"),
    ("/v1/lists", "lists", "admin"),
    ("/metrics", "metrics", "admin"),
)
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Direct = Callable[[bytes], Awaitable[Response]]

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that is being answered."""
access_logger = logging.getLogger("ray_recsys.access")


class Gateway:
    """Wraps an ASGI app.

    Args:
        app: The application.
        limits: The recipe's `serve` section.
        metrics: Where requests and refusals are counted.
        keys: API keys; None: all callers are allowed, and users and the page are shown only on loopback.
        direct: Makes the responses of the busiest routes from their bodies, by method and path: the framework's own
            way to them takes as long as a third of the answer.
    """

    def __init__(
        self,
        app: App,
        limits: ServeRecipe,
        metrics: Metrics,
        keys: Sequence[ApiKey] | None,
        direct: Mapping[tuple[str, str], Direct],
    ) -> None:
        self._app, self._limits, self._metrics, self._keys, self._direct = app, limits, metrics, keys, direct
        self._is_local = is_loopback(limits.host)
        self._max_in_flight = limits.max_waiting + _MAX_BATCH
        self._prefix, self._numbers = uuid.uuid4().hex[:12], count()
        self.num_in_flight = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if _GIVEN_ID.fullmatch(given) else f"{self._prefix}-{next(self._numbers)}".encode()
        REQUEST_ID.set(request_id.decode())
        route, needed = _route_of(scope["path"])
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        try:
            if scope["path"] not in _OPEN:
                self._admit(headers, route, needed)
            self.num_in_flight += 1
            try:
                async with asyncio.timeout(self._limits.timeout_s):
                    direct = self._direct.get((scope["method"], scope["path"]))
                    if direct is None:
                        await self._app(scope, receive, send_with_id)
                    else:
                        response = await _respond(direct, receive)
                        await response(scope, receive, send_with_id)
            finally:
                self.num_in_flight -= 1
        except Problem as problem:
            self._metrics.refusals[problem.body["type"].rsplit(":", 1)[1]] += 1
            await problem.response()(scope, receive, send_with_id)
        except TimeoutError:
            if status:  # the response has begun: there is no other status to send
                raise
            self._metrics.refusals["timed-out"] += 1
            await timed_out(self._limits.timeout_s).response()(scope, receive, send_with_id)
        finally:
            duration_s = time.perf_counter() - start_s
            self._metrics.requests[route, status].add(duration_s)
            self._log(scope, route, status, duration_s, request_id)

    def _admit(self, headers: dict[bytes, bytes], route: str, needed: Scope) -> None:
        """Raises the problem of a request that is not let in."""
        if self.num_in_flight >= self._max_in_flight:
            raise overloaded()
        self._check_host(headers.get(b"host", b"").decode("latin-1"))
        if self._keys is not None:
            self._check_key(headers.get(b"authorization", b"").decode("latin-1"), needed)
        elif (needed == "browse" or route == "lists") and not self._is_local:
            detail = "users, the page and lists are for loopback, or for a key"
            raise Problem(403, "forbidden", "Forbidden", detail)
        length = headers.get(b"content-length", b"0")
        limit = list_body_bytes(self._limits) if needed == "admin" else MAX_BODY_BYTES
        if length.isdigit() and int(length) > limit:
            raise too_large(limit)

    def _check_host(self, host: str) -> None:
        """Refuses names that another site may have pointed to this address (DNS rebinding)."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        allowed = self._limits.allowed_hosts
        if name in allowed or (not allowed and not self._is_local) or is_loopback(name):
            return
        detail = f"host {name[:100]!r} is not served here"
        raise Problem(421, "wrong-host", "Misdirected request", detail, field="host", value=name, limit="allowed_hosts")

    def _check_key(self, authorization: str, needed: Scope) -> None:
        key = find_key(self._keys or (), authorization)
        if key is None:
            detail = "give a valid key: Authorization: Bearer KEY"
            challenge = {"WWW-Authenticate": 'Bearer realm="ray_recsys", Basic realm="ray_recsys"'}
            raise Problem(401, "unauthorized", "Unauthorized", detail, headers=challenge)
        if needed not in key.scopes:
            raise Problem(403, "forbidden", "Forbidden", f"key {key.name!r} lacks the scope {needed!r}")
        rate = self._limits.rate_per_key
        if rate is not None and not key.take(rate, time.monotonic()):
            detail = f"key {key.name!r} may call {rate:g} times a second in each replica"
            raise Problem(429, "rate-limited", "Too many requests", detail, headers={"Retry-After": "1"})

    def _log(
        self, scope: MutableMapping[str, Any], route: str, status: int, duration_s: float, request_id: bytes
    ) -> None:
        is_slow = duration_s * 1e3 >= self._limits.slow_ms
        if not is_slow and not self._limits.access_log:
            return
        line = {
            "request_id": request_id.decode(),
            "method": scope["method"],
            "route": route,  # not the path: it may hold a user's id
            "status": status,
            "ms": round(duration_s * 1e3, 3),
            "slow": is_slow,
        }
        access_logger.log(logging.WARNING if is_slow else logging.INFO, json.dumps(line))


async def _respond(direct: Direct, receive: Receive) -> Response:
    try:
        return await direct(await read_body(receive))
    except Exception as error:  # noqa: BLE001  (as the framework's outermost handler does)
        return problem_of(error).response()


async def read_body(receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """Returns the body of a request.

    Raises:
        Problem: It is larger than the limit, or the client has gone.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(499, "disconnected", "Client closed request", "the body is not complete")
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def list_body_bytes(limits: ServeRecipe) -> int:
    """Returns the largest body of an uploaded list."""
    return MAX_BODY_BYTES + 16 * limits.max_list_items


def too_large(limit: int) -> Problem:
    """Returns the problem of a body above the limit."""
    return Problem(
        413,
        "too-large",
        "Body too large",
        f"the body has more than {limit} bytes",
        field="body",
        value=f"over {limit} bytes",
        limit=limit,
    )


def _route_of(path: str) -> tuple[str, Scope]:
    """Returns the name that a path is counted under, and the scope that it needs."""
    for prefix, name, scope in _ROUTES:
        if path.startswith(prefix):
            return name, scope
    return ("health", "recommend") if path in _OPEN else ("page", "browse")
