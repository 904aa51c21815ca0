"""Latency and rate of Serve compared with a one-process app of the same kernel: `python -m benchmarks.serve_load`.

Both serve a bundle of the shape of MovieLens-1M (6,040 users, 3,706 items, widths 64 and 128-64-32, 200 candidates, the
best 10) on loopback. The bare app is FastAPI on uvicorn with the recommender called in the route: no Ray, no hop. The
graph is `ray-recsys serve`; with `--apart` the stages have their own processes. Clients are keep-alive connections in
this process, each with one request in flight; rounds of both apps alternate, and medians are compared. The weights are
random: they cost as much as trained ones.
"""

import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.serve_load_bundle import write_registry
from benchmarks.serve_load_clients import Load, load
from ray_recsys.config import ServeRecipe

MAX_P50_RATIO = 5.0
MIN_RATE_RATIO = 0.5
START_TIMEOUT_S = 60.0
WARM_UP_S = 2.0


def _measure(ports: dict[str, int], clients: tuple[int, ...], rounds: int, seconds: float) -> list[dict[str, Any]]:
    for port in ports.values():
        asyncio.run(load(port, max(clients), WARM_UP_S))
    loads: dict[tuple[str, int], list[Load]] = {}
    for _ in range(rounds):
        for num_clients in clients:
            for name, port in ports.items():
                loads.setdefault((name, num_clients), []).append(asyncio.run(load(port, num_clients, seconds)))
    return [_row(name, num_clients, measured) for (name, num_clients), measured in loads.items()]


def _row(name: str, num_clients: int, loads: list[Load]) -> dict[str, Any]:
    p50, p99 = (np.median([np.percentile(load.latencies_ms, q) for load in loads]) for q in (50, 99))
    return {
        "app": name,
        "clients": num_clients,
        "rate_per_s": round(float(np.median([load.rate for load in loads])), 1),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "errors": sum(load.num_errors for load in loads),
        "requests": sum(len(load.latencies_ms) for load in loads),
    }


def _judge(rows: list[dict[str, Any]], graphs: tuple[str, ...]) -> dict[str, Any]:
    by_key = {(row["app"], row["clients"]): row for row in rows}
    ratios = {}
    for name in graphs:
        few, many = min(r["clients"] for r in rows), max(r["clients"] for r in rows)
        ratios[name] = {
            "p50_ratio": round(by_key[name, few]["p50_ms"] / by_key["bare", few]["p50_ms"], 2),
            "rate_ratio": round(by_key[name, many]["rate_per_s"] / by_key["bare", many]["rate_per_s"], 2),
            "errors": sum(row["errors"] for row in rows if row["app"] == name),
        }
    return ratios


def _is_reached(ratios: dict[str, Any]) -> bool:
    default = ratios["graph"]
    return bool(
        default["p50_ratio"] <= MAX_P50_RATIO and default["rate_ratio"] >= MIN_RATE_RATIO and not default["errors"]
    )


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _start_bare(registry: Path) -> tuple["subprocess.Popen[bytes]", int]:
    port = _free_port()
    command = [sys.executable, "-m", "benchmarks.serve_load_bare", str(registry), str(port)]
    process = subprocess.Popen(command)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return process, port
    process.kill()
    raise RuntimeError(f"the bare app did not answer within {START_TIMEOUT_S} s")


def _run(rounds: int, seconds: float, *, fused: bool) -> list[dict[str, Any]]:
    from ray_recsys.distributed.cluster import connect
    from ray_recsys.distributed.serve.local import serve

    with tempfile.TemporaryDirectory() as directory:
        registry = write_registry(Path(directory))
        bare, bare_port = _start_bare(registry)
        settings = ServeRecipe(port=0, fused=fused)
        try:
            with connect("local"), serve(registry, settings) as address:
                ports = {"bare": bare_port, "graph": int(address.rpartition(":")[2])}
                return _measure(ports, (1, 16), rounds, seconds)
        finally:
            bare.terminate()
            bare.wait(timeout=10)


def _print_table(rows: list[dict[str, Any]], ratios: dict[str, Any]) -> None:
    columns = ("app", "clients", "rate_per_s", "p50_ms", "p99_ms", "errors", "requests")
    for row in [dict(zip(columns, columns, strict=True)), *rows]:
        click.echo("  ".join(f"{row[name]!s:>10}" for name in columns))
    for name, values in ratios.items():
        click.echo(
            f"{name}: p50 at 1 client {values['p50_ratio']} x bare (at most {MAX_P50_RATIO}), "
            f"rate at 16 clients {values['rate_ratio']} x bare (at least {MIN_RATE_RATIO}), {values['errors']} errors"
        )


@click.command()
@click.option("--rounds", default=5, help="Rounds of each app and number of clients.")
@click.option("--seconds", default=3.0, help="Length of a round.")
@click.option(
    "--fused/--apart", default=True, help="Both stages in the ingress (the default), or in their own replicas."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--check", is_flag=True, help="Exit 1 if a target is missed.")
def main(rounds: int, seconds: float, fused: bool, as_json: bool, check: bool) -> None:
    rows = _run(rounds, seconds, fused=fused)
    ratios = _judge(rows, ("graph",))
    if as_json:
        click.echo(json.dumps({"fused": fused, "rows": rows, "ratios": ratios, "reached": _is_reached(ratios)}))
    else:
        _print_table(rows, ratios)
    if check and not _is_reached(ratios):
        sys.exit(1)


if __name__ == "__main__":
    main()
