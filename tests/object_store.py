"""An S3-compatible server on loopback, and a proxy before it that fails, is slow, cuts answers or hides objects."""

import http.client
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from ray_recsys.storage import cache, location, object_stores

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "never-to-be-printed",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def object_store() -> Iterator[str]:
    """Yields the address of an empty server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would log every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def use_store(patch: pytest.MonkeyPatch, endpoint: str, cache_directory: os.PathLike[str]) -> None:
    """Points this process, and those that it starts, to a server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
        patch.setenv(name, value)
    patch.setenv(cache.DIRECTORY, str(cache_directory))
    forget_clients()


def forget_clients() -> None:
    """Makes this process read endpoints and credentials anew."""
    location._filesystem.cache_clear()
    object_stores._open_store.cache_clear()


def new_bucket(endpoint: str) -> str:
    """Makes a bucket; returns its name."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    scheme, _, host = endpoint.partition("://")
    store = pafs.S3FileSystem(
        endpoint_override=host,
        scheme=scheme,
        region="us-east-1",
        access_key="test",
        secret_key="any",
        allow_bucket_creation=True,
    )
    store.create_dir(name)
    return name


@dataclass
class Faults:
    """What the proxy does to requests; both are asked with method and path."""

    answer: Callable[[str, str], int | None] = lambda _method, _path: None
    """An HTTP status to answer with at once; None: passed on. May sleep first."""
    change: Callable[[str, str, bytes], bytes] = lambda _method, _path, body: body
    """What becomes of an answer's body."""
    seen: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def faulty(endpoint: str, faults: Faults) -> Iterator[str]:
    """Yields the address of a proxy before a server."""
    host = endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            method, path = self.command, self.path
            faults.seen.append((method, path))
            sent = self.read_sent()
            status = faults.answer(method, path)
            headers: list[tuple[str, str]] = []
            body = b""
            if status is None:
                passed = http.client.HTTPConnection(host, timeout=30)
                forwarded = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
                passed.request(method, path, sent, {**forwarded, "Content-Length": str(len(sent))})
                answer = passed.getresponse()
                status, headers = answer.status, answer.getheaders()
                body = faults.change(method, path, answer.read())
                passed.close()
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            sizes = [value for name, value in headers if name.lower() == "content-length"]
            self.send_header("Content-Length", sizes[0] if method == "HEAD" and sizes else str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def read_sent(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                sent += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return sent

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - name of http.server
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.daemon_threads = True
    thread = Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{proxy.server_address[1]}"
    finally:
        proxy.shutdown()
        proxy.server_close()


def first(num: int, status: int, *, delay_s: float = 0.0) -> Callable[[str, str], int | None]:
    """Returns a fault: the first requests are answered with a status, after a delay."""
    left = [num]

    def answer(_method: str, _path: str) -> int | None:
        left[0] -= 1
        if left[0] < 0:
            return None
        time.sleep(delay_s)
        return status

    return answer
