"""Serving under a steady load while faults are injected: `python -m benchmarks.serve_chaos`.

Half the maximum rate is offered while bundles are swapped, rolled back, damaged and unreadable, replicas of each kind
are killed by process id, and the graph is scaled up and down. An answer counts as failed if no attempt of a client that
retries gets it, and as mixed if it has other items than the version that it names. Ray's own proxy does not repeat a
request whose replica dies under it, and answers 500; HAProxy (`RAY_SERVE_ENABLE_HA_PROXY=1`) does.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import psutil
from ray import serve as ray_serve

from benchmarks.serve_chaos_load import SteadyLoad, expected_answers
from ray_recsys.config import ServeRecipe
from ray_recsys.core.prepared import PreparedSet
from ray_recsys.core.recommending.registry import CURRENT, Registry
from ray_recsys.distributed.serve.app import NAME, AppArgs, build_app
from tests.bundles import make_bundle, publish_bundle
from tests.factories import change_a_byte, make_prepared_set

SETTLE_S = 60.0
_STAGES = {True: ("ingress",), False: ("ingress", "recall", "rerank")}


@dataclass(frozen=True, slots=True)
class Chaos:
    """A running service and the faults to inject; each method returns once the service has recovered."""

    address: str
    registry: Registry
    settings: ServeRecipe
    prepared: PreparedSet

    def swap(self, times: int, wait_s: float) -> None:
        """Makes another version live, repeatedly."""
        versions = self.registry.versions()
        for number in range(times):
            self.registry.set_current(versions[number % len(versions)])
            time.sleep(wait_s)
        self._wait_live()

    def roll_back(self) -> None:
        """Goes back to the last good version."""
        self.registry.rollback()
        self._wait_live()

    def kill(self, deployment: str) -> None:
        """Kills one replica and waits for its replacement."""
        before = replicas(deployment)
        os.kill(before[0].pid, signal.SIGKILL)
        _wait(lambda: len({one.pid for one in replicas(deployment)} - {before[0].pid}) >= len(before))
        time.sleep(2)  # the new one is up, and gets requests

    def hide_registry(self, seconds: float) -> None:
        """Makes the registry's storage unreadable for a while."""
        hidden = self.registry.path.with_name("hidden")
        self.registry.path.rename(hidden)
        time.sleep(seconds)
        hidden.rename(self.registry.path)
        self._wait_live()

    def damage(self) -> None:
        """Makes a damaged bundle live without the registry's checks, until every replica has refused it."""
        live = self.registry.current()
        with self.registry.staging() as staging:
            make_bundle(staging / "bundle", self.prepared, seed=99)
            damaged = self.registry.publish(staging / "bundle", live=False)
        change_a_byte(self.registry.path / damaged / "seen_items.npy")
        (self.registry.path / CURRENT).write_text(damaged + "\n")
        _wait(lambda: all(self._get("/readyz")["status"] == "degraded" for _ in range(10)))
        (self.registry.path / CURRENT).write_text(live + "\n")
        self._wait_live()

    def scale(self, num_replicas: int) -> None:
        """Redeploys with another number of replicas of each deployment."""
        changed = {"ingress_replicas": num_replicas}
        if not self.settings.fused:
            changed |= {"recall_replicas": num_replicas, "rerank_replicas": num_replicas}
        args = AppArgs(registry=str(self.registry.path), serve=self.settings.model_copy(update=changed))
        target = ray_serve.RunTarget(build_app(args), name=NAME, route_prefix="/")
        ray_serve.run_many([target], wait_for_applications_running=True)
        _wait(lambda: all(len(replicas(name)) == num_replicas for name in _STAGES[self.settings.fused]))

    def _wait_live(self) -> None:
        version = self.registry.current()
        _wait(lambda: all(self._get("/healthz")["bundle"] == version for _ in range(10)))

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(self.address + path, timeout=10) as response:
                return json.load(response)
        except OSError:
            return {"status": "", "bundle": ""}


def replicas(deployment: str) -> list[psutil.Process]:
    """Returns the processes of a deployment's replicas that descend from this process."""
    title, found = f"ServeReplica:{NAME}:{deployment}", []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(title in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _wait(is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SETTLE_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"not recovered after {SETTLE_S:g} s")
        time.sleep(0.2)


def events(chaos: Chaos, *, num_swaps: int, swap_s: float, hidden_s: float) -> dict[str, Callable[[], None]]:
    """Returns the faults by name, in the order of injection."""
    kinds = _STAGES[chaos.settings.fused]
    return {
        "nothing": lambda: time.sleep(3),
        f"{num_swaps} swaps": lambda: chaos.swap(num_swaps, swap_s),
        "rollback": chaos.roll_back,
        "damaged bundle": chaos.damage,
        f"registry unreadable for {hidden_s:g} s": lambda: chaos.hide_registry(hidden_s),
        **{f"{kind} killed": lambda kind=kind: chaos.kill(kind) for kind in kinds},  # type: ignore[misc]
        "scaled up": lambda: chaos.scale(3),
        "scaled down": lambda: chaos.scale(2),
    }


def go_through(load: SteadyLoad, doings: dict[str, Callable[[], None]]) -> Iterator[dict[str, Any]]:
    """Injects one fault after another under a load; yields the outcomes of the requests during each."""
    for name, do in doings.items():
        load.take()
        start_s = time.monotonic()
        do()
        row = {"event": name, "seconds": round(time.monotonic() - start_s, 1), **asdict(load.take())}
        yield {**row, "slowest_s": round(row["slowest_s"], 3)}


def _max_rate(address: str, seconds: float = 4.0) -> float:
    """Returns the answers per second to 16 clients."""
    import asyncio

    from benchmarks.serve_load_clients import load

    return asyncio.run(load(int(address.rpartition(":")[2]), 16, seconds)).rate


def _run(*, fused: bool, rate: float | None, quick: bool) -> Iterator[dict[str, Any]]:
    from ray_recsys.distributed.cluster import connect
    from ray_recsys.distributed.serve.local import serve

    home = Path(tempfile.mkdtemp())
    try:
        prepared = make_prepared_set(home / "prepared", num_users=500, num_items=2000)
        for seed in range(3):
            publish_bundle(home / "registry", prepared, seed=seed)
        registry = Registry(home / "registry")
        expected = expected_answers(registry)
        settings = ServeRecipe(
            port=0, fused=fused, ingress_replicas=2, recall_replicas=2, rerank_replicas=2, cpus_per_replica=0.1
        )
        with connect("local"), serve(registry.path, settings) as address:
            offered = rate or _max_rate(address) / 2
            click.echo(f"offered: {offered:.0f} requests/s", err=True)
            chaos = Chaos(address, registry, settings, prepared)
            doings = events(chaos, num_swaps=3 if quick else 20, swap_s=2.0, hidden_s=5.0 if quick else 60.0)
            with SteadyLoad(address, offered, expected) as load:
                yield from go_through(load, doings)
    finally:
        shutil.rmtree(home, ignore_errors=True)


@click.command()
@click.option("--fused/--apart", default=True, help="Both stages in the ingress, or in their own replicas.")
@click.option("--rate", type=float, help="Requests per second; default: half the maximum.")
@click.option("--quick", is_flag=True, help="Fewer swaps, and a shorter outage of the registry.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--check", is_flag=True, help="Exit 1 if an answer failed or was mixed.")
def main(fused: bool, rate: float | None, quick: bool, as_json: bool, check: bool) -> None:
    rows = []
    for row in _run(fused=fused, rate=rate, quick=quick):
        rows.append(row)
        click.echo("  ".join(f"{name} {value}" for name, value in row.items()), err=as_json)
    if as_json:
        click.echo(json.dumps({"fused": fused, "rows": rows}))
    if check and any(row["failed"] or row["mixed"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
