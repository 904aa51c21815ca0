"""Options of clusters of a test's own: no other cluster of the machine uses their ports and temporary directory."""

from ray_recsys.distributed.environment import PROXY_PORTS, free_ports

# Of a head's `_system_config`: a dead node is detected in about 2 s instead of 30 s.
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}


def proxy_ports() -> dict[str, str]:
    """Returns free ports for the proxies of a cluster, as environment variables."""
    return {name: str(port) for name, port in zip(PROXY_PORTS, free_ports(len(PROXY_PORTS)), strict=True)}


def head_options(dashboard_port: int, temporary: str) -> list[str]:
    """Returns the options of `ray start --head` that keep it apart from every other head of the machine."""
    port, client_port, agent_port, grpc_port, metrics_port = free_ports(5)
    return [
        *(f"--temp-dir={temporary}", f"--port={port}", f"--dashboard-port={dashboard_port}"),
        *(f"--ray-client-server-port={client_port}", f"--dashboard-agent-listen-port={agent_port}"),
        *(f"--dashboard-agent-grpc-port={grpc_port}", f"--metrics-export-port={metrics_port}"),
    ]
