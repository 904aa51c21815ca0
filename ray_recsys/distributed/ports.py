"""Ports of this machine, asked before anything is served on them."""

import socket

from ray_recsys.errors import ClusterError


def usable_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        ClusterError: It is in use, or the host is not this machine's.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"cannot serve on {host}:{port} ({error.strerror}); give another serve.port, or 0 for a free one"
            ) from None
        free: int = listener.getsockname()[1]
        return free
