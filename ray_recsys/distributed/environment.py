"""Ray's settings in environment variables, and ports of this machine. Variables that are already set win."""

import os
import socket

from ray_recsys.errors import ClusterError

# Read by Ray when a raylet, or a Train, Data or Serve process starts, and when `ray.serve` is imported.
_DEFAULTS = {
    "RAY_num_workers_soft_limit": "16",  # or each shuffle on a small node would start new Python processes
    "RAY_task_oom_retries": "3",  # or a task that needs more memory than a node has would be retried without end
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # or every report would block for 2 s
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a process per worker group whose results are not used here
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # or Tune would print a table to stdout even with verbose=0
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # 8-13 x the default proxy's request rate
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # gRPC between replicas
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}

# Fixed by default, on all interfaces: a second cluster on the machine could not serve.
PROXY_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def set_defaults() -> None:
    """Sets every variable that is not set yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_proxy_ports() -> None:
    """Chooses free ports for the proxies of a local cluster; call it before the cluster starts."""
    for name, port in zip(PROXY_PORTS, free_ports(len(PROXY_PORTS)), strict=True):
        os.environ.setdefault(name, str(port))


def free_ports(count: int) -> list[int]:
    """Returns different ports that are free on all of this machine's interfaces."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("", 0))
        return [listener.getsockname()[1] for listener in listeners]  # all are bound, so none is chosen twice
    finally:
        for listener in listeners:
            listener.close()


def usable_port(host: str, port: int) -> int:
    """Returns the port, or a free one for 0.

    Raises:
        ClusterError: The port is in use, or the host is not this machine's.
    """
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise ClusterError(
                f"cannot serve on {host}:{port} ({error.strerror})",
                remedy="choose another serve.port, or 0 for a free one",
            ) from None
        free: int = listener.getsockname()[1]
        return free
