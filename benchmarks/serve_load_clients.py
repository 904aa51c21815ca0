"""Clients of `serve_load`: keep-alive connections, each with one request in flight."""

import asyncio
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.serve_load_bundle import NUM_USERS


@dataclass(frozen=True, slots=True)
class Load:
    """Measurements of all clients in one round."""

    latencies_ms: "np.ndarray[Any, np.dtype[np.float64]]"
    seconds: float
    num_errors: int

    @property
    def rate(self) -> float:
        """Successful responses per second."""
        return len(self.latencies_ms) / self.seconds


class _Client(asyncio.Protocol):
    """One keep-alive HTTP/1.1 connection without the cost of an HTTP library; answers carry a Content-Length."""

    def __init__(self) -> None:
        self._buffer = b""
        self._answer: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(rest) >= length and self._answer is not None and not self._answer.done():
            self._buffer = rest[length:]
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("closed by the server"))

    async def ask(self, request: bytes) -> int:
        """Returns the status of the response."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


def _request(user_id: int) -> bytes:
    body = json.dumps({"user_id": user_id, "k": 10}).encode()
    head = "POST /v1/recommend HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def load(port: int, num_clients: int, seconds: float) -> Load:
    """Returns the measurements of clients that each send the next request as soon as they have a response."""
    requests = [_request(user_id) for user_id in np.random.default_rng(0).integers(0, NUM_USERS, 4096).tolist()]
    latencies: list[float] = []
    num_errors = 0
    end_s = time.perf_counter() + seconds

    async def work(number: int) -> None:
        nonlocal num_errors
        transport, client = await asyncio.get_running_loop().create_connection(_Client, "127.0.0.1", port)
        sent = number * 257  # clients start at different users
        while (start_s := time.perf_counter()) < end_s:
            try:
                status = await asyncio.wait_for(client.ask(requests[sent % len(requests)]), 30)
            except OSError:
                num_errors += 1
                break
            sent += 1
            if status == 200:
                latencies.append((time.perf_counter() - start_s) * 1e3)
            else:
                num_errors += 1
        transport.close()

    begin_s = time.perf_counter()
    await asyncio.gather(*(work(number) for number in range(num_clients)))
    return Load(np.array(latencies), time.perf_counter() - begin_s, num_errors)
