"""Preflight checks of this machine and of the cluster it joins.

Each check is independent: an error in one does not affect the others. Nothing is changed; without an address a local
Ray is started and ended.
"""

import os
import platform
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ray_recsys.config import ClusterRecipe, Recipe, ServeRecipe
from ray_recsys.distributed.cluster import connect, resolve_address
from ray_recsys.distributed.environment import usable_port
from ray_recsys.errors import ClusterError, RecsysError
from ray_recsys.progress import Event, Reporter, silent

GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - read, never written
_PACKAGES = ("ray", "torch", "faiss-cpu", "pyarrow", "numpy", "pydantic", "safetensors")
OBJECT_STORE_SHARE = 0.3  # of a node's memory, which Ray takes in shared memory
_OPEN_REPLICAS = "RAY_SERVE_THROUGHPUT_OPTIMIZED"  # gRPC between replicas, which carries pickles
_SCALES_UP = "none: nodes start on demand, as cluster.wait_for_nodes says"

Status = Literal["ok", "warn", "fail"]


class Check(BaseModel):
    """Result of one check; every status but ok has a remedy."""

    model_config = ConfigDict(frozen=True)

    name: str
    status: Status
    detail: str
    remedy: str = ""


class Diagnosis(BaseModel):
    """All checks, in the order in which they ran."""

    model_config = ConfigDict(frozen=True)

    checks: tuple[Check, ...]


def examine(recipe: Recipe, address: str | None = None, *, report: Reporter = silent) -> Diagnosis:
    """Returns the checks of this machine and of the cluster at `address`."""
    report("checking this machine")
    checks = [_run(name, check) for name, check in _machine_checks(recipe).items()]
    report("checking Ray")
    checks += _check_cluster(recipe, address)
    return Diagnosis(checks=tuple(checks))


def _run(name: str, check: Callable[[], Check]) -> Check:
    """Runs a check; one that raises has failed."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - the other checks still run
        return _failed(name, error)


def _failed(name: str, error: Exception) -> Check:
    if isinstance(error, RecsysError):
        return Check(name=name, status="fail", detail=error.message, remedy=error.remedy or "see the message")
    return Check(name=name, status="fail", detail=f"{type(error).__name__}: {error}", remedy="see the message")


def _machine_checks(recipe: Recipe) -> dict[str, Callable[[], Check]]:
    """Returns the checks of this machine by name."""
    return {
        "python": lambda: Check(name="python", status="ok", detail=platform.python_version()),
        **{package: partial(_check_package, package) for package in _PACKAGES},
        "cores": _check_threads,
        "memory": _check_memory,
        "shared memory": _check_shared_memory,
        "disk for Ray": lambda: _check_disk("disk for Ray", os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()),
        "disk here": lambda: _check_disk("disk here", Path.cwd()),
        "open files": _check_open_files,
        "port": partial(_check_port, recipe.serve),
        "auth": _check_auth,
    }


def _check_package(name: str) -> Check:
    try:
        return Check(name=name, status="ok", detail=metadata.version(name))
    except metadata.PackageNotFoundError:
        remedy = f"pip install {name}, or pip install ."
        return Check(name=name, status="fail", detail="not installed", remedy=remedy)


def _check_memory() -> Check:
    remedy = "use a machine with 4 GiB or more"
    return _at_least("memory", _total_memory_bytes(), warn=4 * GIB, fail=2 * GIB, remedy=remedy)


def _check_shared_memory() -> Check:
    # Ray's object store is there; it falls back to slow files on disk if there is less.
    found = shutil.disk_usage(_SHARED_MEMORY).total if _SHARED_MEMORY.is_dir() else 0
    wanted = int(OBJECT_STORE_SHARE * _total_memory_bytes())
    return _at_least(str(_SHARED_MEMORY), found, warn=wanted, fail=0, remedy=f"docker run --shm-size={_gib(wanted)}g")


def _check_disk(name: str, path: str | Path) -> Check:
    free = shutil.disk_usage(path).free
    return _at_least(f"{name} ({path})", free, warn=5 * GIB, fail=GIB, remedy="free some space")


def _check_open_files() -> Check:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft:,} allowed"
    if soft in range(8192, 2**63) or soft == resource.RLIM_INFINITY:
        return Check(name="open files", status="ok", detail=detail)
    return Check(name="open files", status="warn", detail=detail, remedy="ulimit -n 65536")


def _check_threads() -> Check:
    import faiss
    import torch

    cores = len(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count()
    detail = (
        f"{cores} cores, {gpus} GPUs; torch uses {torch.get_num_threads()} threads, faiss {faiss.omp_get_max_threads()}"
    )
    if max(torch.get_num_threads(), faiss.omp_get_max_threads()) > cores:
        return Check(name="cores", status="warn", detail=detail, remedy=f"export OMP_NUM_THREADS={cores}")
    return Check(name="cores", status="ok", detail=detail)


def _check_port(serve: ServeRecipe) -> Check:
    name = f"port {serve.port}"
    try:
        usable_port(serve.host, serve.port)
    except ClusterError as error:
        return _failed(name, error)
    return Check(name=name, status="ok", detail="free (serve.port)")


def _check_auth() -> Check:
    mode = os.environ.get("RAY_AUTH_MODE", "")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    has_token = "RAY_AUTH_TOKEN" in os.environ or token.is_file()
    detail = f"mode {mode or 'unset'}, {'a' if has_token else 'no'} token"
    if mode == "token" and not has_token:
        return Check(name="auth", status="fail", detail=detail, remedy="ray get-auth-token --generate")
    if mode == "token":
        return Check(name="auth", status="ok", detail=detail)
    # Unset, `ray start` requires a token only where it finds one, which every node must decide for itself.
    ports = "the dashboard's port"
    if os.environ.get(_OPEN_REPLICAS, "0") != "0":
        ports += f" or the replicas' gRPC ports ({_OPEN_REPLICAS})"
    where = "on a node without the token" if has_token and not mode else "on a cluster of `ray start`"
    detail += f": {where}, anyone who reaches {ports} can run code"
    remedy = "export RAY_AUTH_MODE=token" + ("" if has_token else "; ray get-auth-token --generate")
    return Check(name="auth", status="warn", detail=detail, remedy=remedy)


def _check_cluster(recipe: Recipe, address: str | None) -> Iterator[Check]:
    try:
        with connect(address):
            yield _run("ray", partial(_check_nodes, resolve_address(address)))
            yield _run("node auth", _check_authentication)
            yield _run("a task", _check_task)
            yield _run("trainers", partial(_check_trainers, recipe.cluster))
            yield _run("replicas", partial(_check_replicas, recipe))
    except Exception as error:  # noqa: BLE001 - the checks of this machine are shown whatever Ray does
        yield _failed("ray", error)


def _check_nodes(address: str) -> Check:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    have = ray.cluster_resources()
    detail = f"{address}: {len(alive)} nodes, {have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
    return Check(name="ray", status="ok", detail=detail)


def _check_authentication() -> Check:
    """Checks whether every node requires the token; anyone who reaches a node without it can run code there."""
    import ray

    @ray.remote(num_cpus=0, max_retries=0)
    def settings() -> tuple[bool, bool]:
        return os.environ.get("RAY_AUTH_MODE") == "token", os.environ.get(_OPEN_REPLICAS, "0") != "0"

    alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    asked = [settings.options(label_selector={"ray.io/node-id": node}).remote() for node in alive]
    return _judge_nodes(list(zip(alive.values(), ray.get(asked, timeout=60), strict=True)))


def _judge_nodes(nodes: Sequence[tuple[str, tuple[bool, bool]]]) -> Check:
    """Returns the check of nodes: whether each requires the token, and whether its replicas listen on gRPC ports."""
    open_nodes = {address: has_grpc for address, (requires, has_grpc) in nodes if not requires}
    if not open_nodes:
        return Check(name="node auth", status="ok", detail=f"the token is required on all nodes ({len(nodes)})")
    has_grpc = any(open_nodes.values())
    ports = "the gRPC ports of Serve's replicas" if has_grpc else "Ray's ports"
    detail = f"no token is required on {', '.join(open_nodes)}: anyone who reaches {ports} there can run code"
    remedy = "start Ray on every node with RAY_AUTH_MODE=token and the same token"
    return Check(name="node auth", status="fail" if has_grpc else "warn", detail=detail, remedy=remedy)


def _check_task() -> Check:
    import ray

    @ray.remote(num_cpus=0)
    def version() -> str:
        import ray_recsys

        return ray_recsys.__version__

    try:
        found = ray.get(version.remote(), timeout=60)
    except (ray.exceptions.RayError, ImportError) as error:
        text = str(error).strip().splitlines()
        remedy = "install ray_recsys on every node, or submit with --working-dir"
        return Check(name="a task", status="fail", detail=text[-1] if text else "failed", remedy=remedy)
    return Check(name="a task", status="ok", detail=f"ran with ray_recsys {found}")


def _check_trainers(cluster: ClusterRecipe) -> Check:
    from ray_recsys.distributed.resources import require_workers

    missing: list[Event] = []
    try:
        feed = require_workers(cluster, report=missing.append)
    except ClusterError as error:
        return _failed("trainers", error)
    if missing:
        return Check(name="trainers", status="warn", detail=str(missing[0]), remedy=_SCALES_UP)
    detail = (
        f"{cluster.num_workers} train workers of {cluster.cpus_per_worker:g} CPUs fit, each fed by "
        f"{feed.num_tasks} tasks of {feed.task_cpus:g}"
    )
    return Check(name="trainers", status="ok", detail=detail)


def _check_replicas(recipe: Recipe) -> Check:
    import ray

    serve, available = recipe.serve, ray.cluster_resources().get("CPU", 0)
    replicas = serve.num_ingresses(available) + (0 if serve.fused else serve.recall_replicas + serve.rerank_replicas)
    needed = replicas * serve.cpus_per_replica
    detail = f"{replicas} Serve replicas need {needed:g} CPUs"
    if needed <= available:
        return Check(name="replicas", status="ok", detail=detail)
    detail += f", the cluster has {available:g}"
    if recipe.cluster.wait_for_nodes:
        return Check(name="replicas", status="warn", detail=detail, remedy=_SCALES_UP)
    remedy = "lower serve.cpus_per_replica or the numbers of replicas"
    return Check(name="replicas", status="fail", detail=detail, remedy=remedy)


def _at_least(name: str, found: int, *, warn: int, fail: int, remedy: str) -> Check:
    status: Status = "fail" if found < fail else "warn" if found < warn else "ok"
    detail = f"{_gib(found)} GiB"
    return Check(name=name, status=status, detail=detail, remedy="" if status == "ok" else remedy)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f}"


def _total_memory_bytes() -> int:
    """Returns the memory that this process may use: the machine's, or the container's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return total if text == "max" else min(total, int(text))
