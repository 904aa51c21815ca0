"""The Serve graph from typed arguments: ingress → recall → rerank, each in its replicas or all in the ingress's.

`serve_config.yaml` names `build_app`; so does `local.serve`, so that both deploy the same thing.
"""

import os
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve.schema import LoggingConfig

from ray_recsys.config import Recipe, ServeRecipe
from ray_recsys.config.files import load_recipe
from ray_recsys.core.recommending.registry import Registry
from ray_recsys.distributed.serve.ingress import Ingress
from ray_recsys.distributed.serve.recall import RecallStage
from ray_recsys.distributed.serve.rerank import RerankStage
from ray_recsys.errors import RecipeError

NAME = "ray-recsys"
HEALTH_CHECK_PERIOD_S = 2.0  # a dead replica is replaced when it is next looked at
_UNLIMITED = 1_000_000  # the ingress itself refuses above serve.max_waiting, by a problem; Serve would by plain text


class AppArgs(BaseModel):
    """Arguments of `build_app`; an unknown key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    registry: str
    """Directory of bundles on storage that every node sees; `~` and `$VARIABLES` are filled in."""
    recipe: str | None = None
    """TOML file whose `serve` section counts; None: the defaults."""
    serve: ServeRecipe | None = None
    """The `serve` section itself, in place of a recipe."""


def build_app(args: AppArgs) -> serve.Application:
    """Returns the graph over a registry's live bundle.

    Raises:
        RegistryError: No bundle is live.
        RecipeError: The recipe cannot be read, or is given twice; or a variable of a path is not set.
    """
    registry = Path(_filled_in(args.registry)).absolute()
    Registry(registry).current()
    limits = _limits(args)
    ingress = _deployment(Ingress, "ingress", limits, limits.ingress_replicas, max_ongoing_requests=_UNLIMITED)
    if limits.fused:
        return ingress.bind(str(registry), limits)
    recall = _deployment(RecallStage, "recall", limits, limits.recall_replicas).bind(str(registry))
    rerank = _deployment(RerankStage, "rerank", limits, limits.rerank_replicas).bind(str(registry))
    return ingress.bind(str(registry), limits, recall, rerank)


def _limits(args: AppArgs) -> ServeRecipe:
    if args.recipe is None:
        return args.serve or Recipe().serve
    if args.serve is not None:
        raise RecipeError("give `recipe` or `serve`, not both")
    return load_recipe(Path(_filled_in(args.recipe))).serve


def _deployment(
    of: type, name: str, limits: ServeRecipe, num_replicas: int, *, max_ongoing_requests: int = 64
) -> serve.Deployment:
    return serve.deployment(
        name=name,
        num_replicas=num_replicas,
        max_ongoing_requests=max_ongoing_requests,
        health_check_period_s=HEALTH_CHECK_PERIOD_S,
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),  # a line a request costs 5 %
        ray_actor_options={"num_cpus": limits.cpus_per_replica},
    )(of)


def _filled_in(path: str) -> str:
    filled = os.path.expandvars(Path(path).expanduser())
    if unset := re.search(r"\$\{?(\w+)", filled):
        raise RecipeError(
            f"{path}: the variable {unset[1]} is not set where Ray was started; set it there, or write the path out"
        )
    return filled
