"""Ray's settings that are environment variables; those that are set already win. See Ray's documentation for more."""

import os
import socket

# Read by Ray when a raylet, or a Train, Data or Serve process starts, and when `ray.serve` is imported.
_DEFAULTS = {
    "RAY_num_workers_soft_limit": "16",  # else each shuffle on a small node starts Python processes anew
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # else every report blocks for 2 s
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # else Tune draws a table on stdout however silent it is told to be
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # 8-13 x the default proxy's rate
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # gRPC between replicas
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}

# Fixed by default, on all interfaces: the second cluster on a machine could not serve.
_PROXY_PORTS = (
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def set_defaults() -> None:
    """Sets what is not set yet."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def set_proxy_ports() -> None:
    """Gives the proxies of a local cluster, before it is started, ports of their own."""
    listeners = [socket.socket() for _ in _PROXY_PORTS]
    for name, listener in zip(_PROXY_PORTS, listeners, strict=True):
        listener.bind(("", 0))
        os.environ.setdefault(name, str(listener.getsockname()[1]))
    for listener in listeners:  # all at once: so far none could be given twice
        listener.close()
