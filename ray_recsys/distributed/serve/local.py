"""Serves on the connected Ray for the duration of a `with` block."""

import contextlib
import io
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve as ray_serve
from ray.serve.schema import ApplicationStatus, LoggingConfig

from ray_recsys.config import ServeRecipe
from ray_recsys.distributed.environment import usable_port
from ray_recsys.distributed.serve.app import NAME, AppArgs, build_app
from ray_recsys.errors import ClusterError, StageError
from ray_recsys.progress import Reporter, silent
from ray_recsys.serving.bundles import usable_version
from ray_recsys.serving.keys import check_exposure
from ray_recsys.storage.location import Location, LocationLike

START_TIMEOUT_S = 120.0
POLL_S = 0.1
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
LOCAL_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback is not reachable by proxy


@contextmanager
def serve(registry: LocationLike, settings: ServeRecipe, *, report: Reporter = silent) -> Iterator[str]:
    """Serves a registry's live bundle; yields the address, e.g. `http://127.0.0.1:8000`.

    The application answers when the block starts and is shut down when it ends, which takes a few seconds.

    Args:
        registry: Directory of bundles; a newly published one goes live automatically.
        settings: The recipe's `serve` section.
        report: Receives each step.

    Raises:
        RegistryError: No bundle is live.
        ArtifactError: The live bundle is damaged or refused, and so is every good one.
        ClusterError: The port is in use, or Serve is already running on the cluster.
        StageError: The application did not start.
        InputError: Other machines could call it without a key.
    """
    check_exposure(settings.host, allow_open=settings.allow_open)
    version = usable_version(registry)  # refused here, before replicas restart over it
    _check_not_serving()
    port = usable_port(settings.host, settings.port)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        ray_serve.start(
            http_options={"host": settings.host, "port": port},
            logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
        )
        app = build_app(AppArgs(registry=str(Location.of(registry)), serve=settings))
        target = ray_serve.RunTarget(app, name=NAME, route_prefix="/")
        ray_serve.run_many([target], wait_for_applications_running=False)
        _wait_running()
        address = f"http://{_reachable(settings.host)}:{port}"
        _wait_answering(address)
        report(f"serving {version} at {address}")
        yield address
    finally:
        with contextlib.redirect_stdout(io.StringIO()):  # Ray prints the controller's exit as a failure
            ray_serve.shutdown()


def _check_not_serving() -> None:
    """Raises ClusterError if Serve is running: its host and port are fixed, and it is not ours to shut down."""
    try:
        ray.get_actor(_CONTROLLER, namespace="serve")
    except ValueError:
        return
    applications = ", ".join(ray_serve.status().applications) or "no application yet"
    raise ClusterError(
        f"Serve is already running on this Ray cluster ({applications})",
        remedy="deploy to it with `serve deploy serve_config.yaml`, or omit --address",
    )


def _reachable(host: str) -> str:
    return "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104  (compared, not bound)


def _wait_running() -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        application = ray_serve.status().applications.get(NAME)
        if application is not None and application.status == ApplicationStatus.RUNNING:
            return
        if application is not None and application.status == ApplicationStatus.DEPLOY_FAILED:
            reasons = [d.message for d in application.deployments.values() if d.message]
            raise StageError(f"deployment failed: {application.message or ''} {' '.join(reasons)}".strip())
        if time.monotonic() > deadline_s:
            waiting = {} if application is None else {n: d.status for n, d in application.deployments.items()}
            raise StageError(
                f"the application did not start within {START_TIMEOUT_S:.0f} s ({waiting})",
                remedy="check that the cluster has serve.*_replicas x serve.cpus_per_replica CPUs",
            )
        time.sleep(POLL_S)


def _wait_answering(address: str) -> None:
    """Waits until the proxy routes to the replicas."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with LOCAL_OPENER.open(f"{address}/healthz", timeout=5):
                return
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise StageError(f"{address} did not answer within {START_TIMEOUT_S:.0f} s: {error}") from error
        time.sleep(POLL_S)
