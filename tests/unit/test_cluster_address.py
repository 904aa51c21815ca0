"""A wrong Ray address is refused within seconds and named; Ray itself would retry for minutes."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ray_recsys.distributed import cluster
from ray_recsys.distributed.cluster import connect, resolve_address
from ray_recsys.errors import ClusterError


@contextmanager
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def refusal(address: str) -> str:
    with pytest.raises(ClusterError) as refused, connect(address):
        pass
    return str(refused.value)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_closed_port(form: str) -> None:
    with listening() as port:
        address = form.format(port)
    start_s = time.monotonic()
    message = refusal(address)
    assert time.monotonic() - start_s < 6
    assert repr(address) in message
    assert "ray start --head" in message


def test_mute_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT_TIMEOUT_S", 0.2)
    with listening() as port:
        assert "timed out" in refusal(f"127.0.0.1:{port}")


def test_port_of_something_else() -> None:
    def answer() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        thread = threading.Thread(target=answer)
        thread.start()
        message = refusal(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join(5)
    assert "the server there is not Ray" in message


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "127.0.0.1:notaport", "127.0.0.1:99999", ":6379"])
def test_address_that_cannot_be_one(address: str) -> None:
    assert repr(address) in refusal(address)


def test_argument_then_environment_then_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert resolve_address(None) == "local"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert resolve_address(None) == "10.0.0.1:6379"
    assert resolve_address("auto") == "auto"
