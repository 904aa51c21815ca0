"""Builds the Serve application from typed arguments: ingress → recall → rerank, or all in the ingress (`serve.fused`).

`serve_config.yaml` and `local.serve` both use `build_app`, so that they deploy the same application.
"""

import os
import re

import ray
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.schema import LoggingConfig

from ray_recsys.config import Recipe, ServeRecipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serve.deployments import Ingress, RecallReplica, RerankReplica
from ray_recsys.errors import RecipeError
from ray_recsys.storage.location import Location

NAME = "ray-recsys"
HEALTH_CHECK_PERIOD_S = 2.0  # a dead replica is replaced at the next check
DRAIN_S = 5.0  # beyond the time limit of a request: a replica that stops first answers what it has begun
DRAIN_POLL_S = 0.2
_UNLIMITED = 1_000_000  # above serve.max_waiting the ingress refuses with a problem; Serve would with plain text


class AppArgs(BaseModel):
    """Arguments of `build_app`; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    registry: str
    """Directory or URI of bundles, which every node reaches; `~` and `$VARIABLES` are expanded."""
    recipe: str | None = None
    """TOML file whose `serve` section is used; None: the defaults."""
    serve: ServeRecipe | None = None
    """The `serve` section itself, instead of a recipe."""


def build_app(args: AppArgs) -> serve.Application:
    """Returns the application that serves a registry's live bundle.

    Raises:
        RegistryError: No bundle is live.
        RecipeError: The recipe cannot be read, both `recipe` and `serve` are given, or a path has an unset variable.
    """
    registry = Location.of(_expand(args.registry))
    home = Registry(registry)
    if not home.good():
        home.current()  # without a good version to fall back to, CURRENT must name one
    limits = _limits(args)
    num_cpus = ray.cluster_resources().get("CPU", 1) if ray.is_initialized() else 1
    ingress = _deployment(Ingress, "ingress", limits, limits.num_ingresses(num_cpus), max_ongoing_requests=_UNLIMITED)
    if limits.fused:
        return ingress.bind(str(registry), limits)
    recall = _deployment(RecallReplica, "recall", limits, limits.recall_replicas).bind(str(registry))
    rerank = _deployment(RerankReplica, "rerank", limits, limits.rerank_replicas).bind(str(registry))
    return ingress.bind(str(registry), limits, recall, rerank)


def _limits(args: AppArgs) -> ServeRecipe:
    if args.recipe is None:
        return args.serve or Recipe().serve
    if args.serve is not None:
        raise RecipeError("both `recipe` and `serve` are given", remedy="give only one")
    return load_recipe(_expand(args.recipe)).serve


def _deployment(
    of: type, name: str, limits: ServeRecipe, num_replicas: int, *, max_ongoing_requests: int = 64
) -> serve.Deployment:
    return serve.deployment(
        name=name,
        num_replicas=num_replicas,
        max_ongoing_requests=max_ongoing_requests,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        graceful_shutdown_timeout_s=limits.timeout_s + DRAIN_S,
        graceful_shutdown_wait_loop_s=DRAIN_POLL_S,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),  # a line per request costs 5 %
        ray_actor_options={"num_cpus": limits.cpus_per_replica},
    )(of)


def _expand(path: str) -> str:
    expanded = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111 - it may be a URI
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise RecipeError(
            f"{path}: the variable {unset[1]} is not set in the environment that Ray was started in",
            remedy="set it there, or write the path out",
        )
    return expanded
