"""Joins a running Ray cluster or starts a local one, with the settings that every stage needs."""

import logging
import os
import socket
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray_recsys.distributed.environment import set_proxy_ports
from ray_recsys.errors import ClusterError

CONNECT_TIMEOUT_S = 5.0
_SETTINGS = 4  # HTTP/2 frame type
_ADDRESS_FORMS = "write host:port, ray://host:port or auto"


def resolve_address(address: str | None) -> str:
    """Returns the address to join: the argument, else RAY_ADDRESS (set in jobs), else `local` (starts a cluster)."""
    return address or os.environ.get("RAY_ADDRESS") or "local"


@contextmanager
def connect(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """Joins the cluster at `address`, or starts a local one that ends with the block. Does nothing if Ray is connected.

    Args:
        address: `host:port`, `auto`, `ray://host:port` or `local`; None: see `resolve_address`.
        num_cpus: Logical CPUs of a local cluster; None: the machine's. Ignored when joining.

    Raises:
        ClusterError: No Ray answers at the address.
    """
    import ray

    if ray.is_initialized():
        configure_data()
        yield
        return
    resolved = resolve_address(address)
    options: dict[str, Any] = {}
    if resolved == "local":
        set_proxy_ports()
        options = {"num_cpus": num_cpus, "include_dashboard": False}
    else:
        _check_answers(resolved)
    try:
        ray.init(address=resolved, log_to_driver=False, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"cannot join Ray at {resolved!r}: {error}") from error
    try:
        configure_data()
        yield
    finally:
        ray.shutdown()


def configure_data() -> None:
    """Sets Ray Data's context; each Dataset copies it when it is created."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False  # V2 starts 32 actors per pass and ignores override_num_blocks
    # Tasks and consumers may take any time; `resources` refuses what cannot start.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_answers(address: str) -> None:
    if address == "auto":
        return
    parsed = urllib.parse.urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parsed.hostname, parsed.port or 10001
    except ValueError as error:
        raise ClusterError(f"Ray address {address!r}: {error}", remedy=_ADDRESS_FORMS) from None
    if host is None:
        raise ClusterError(f"Ray address {address!r} has no host", remedy=_ADDRESS_FORMS)
    try:
        _probe(host, port)
    except OSError as error:
        raise ClusterError(
            f"Ray at {address!r} does not answer ({error})",
            remedy="start it with `ray start --head`, or omit --address to start a local one",
        ) from None


def _probe(host: str, port: int) -> None:
    """Raises OSError unless a gRPC server answers; Ray itself would retry for minutes, then end the process.

    Source: RFC 9113, section 3.4: each side opens the connection with a SETTINGS frame.
    """
    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":
            return
        empty_settings = bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
        header = connection.recv(9, socket.MSG_WAITALL)
    if len(header) < 9 or header[3] != _SETTINGS:
        raise ConnectionError("the server there is not Ray")
