"""The API's routes about the live bundle: its manifest, users, histories and items, and whether it answers."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query

from ray_recsys.core.models.registry import MODELS
from ray_recsys.core.recommending.arms import LIVE
from ray_recsys.core.recommending.recommender import Query as RecallQuery
from ray_recsys.serving.answers import ItemWriter
from ray_recsys.serving.api import Api
from ray_recsys.serving.live import LiveArm
from ray_recsys.serving.resolve import find_id
from ray_recsys.serving.routes import StringIds, problems
from ray_recsys.serving.schemas import (
    ArmDescription,
    BundleResponse,
    Health,
    ItemResponse,
    ItemsResponse,
    Ready,
    SeenResponse,
    SwapProblem,
    UsersResponse,
)

MAX_LISTED = 1000

_Limit = Annotated[int, Query(ge=1, le=MAX_LISTED, description="Maximum number of results")]


def bundle_routes(api: Api) -> APIRouter:
    """Returns the routes that browse the live bundle."""
    router = APIRouter(tags=["bundle"])

    @router.get("/v1/bundle", responses=problems())
    def bundle() -> BundleResponse:
        """Describes the live bundle."""
        manifest = api.live.bundle.manifest
        return BundleResponse(
            **manifest.model_dump(mode="json"),
            model_label=MODELS[manifest.model].label,
            recall_model_label=MODELS[manifest.recall_model].label,
            swap_failure=_swap_failure(api),
            arms=tuple(_describe(one) for one in api.live.arms.values()),
            arm_failure=api.live.arm_failure,
        )

    @router.get("/v1/users", responses=problems())
    def users(limit: _Limit = 20, string_ids: StringIds = False) -> UsersResponse:
        """Lists users of the live bundle."""
        vocabulary = api.live.bundle.users
        ids = vocabulary.ids_of(np.arange(min(limit, len(vocabulary)))).to_pylist()
        return UsersResponse(users=[str(one) for one in ids] if string_ids else ids)

    @router.get(
        "/v1/users/{user_id:path}/seen",
        response_model_exclude_none=True,
        responses=problems(404),
    )
    def seen(user_id: str, limit: _Limit = 50, string_ids: StringIds = False) -> SeenResponse:
        """Lists the items that a user has seen, latest first."""
        bundle = api.live.bundle
        user_idx = find_id(bundle.users, user_id, "user_id", "users")
        return SeenResponse(items=ItemWriter(bundle, string_ids).seen(user_idx, limit))

    @router.get("/v1/items", response_model_exclude_none=True, responses=problems())
    def items(
        query: Annotated[str, Query(max_length=200, description="Part of the title")] = "",
        limit: _Limit = 20,
        string_ids: StringIds = False,
    ) -> ItemsResponse:
        """Searches items by title, most popular first."""
        bundle = api.live.bundle
        return ItemsResponse(items=ItemWriter(bundle, string_ids).items(bundle.catalogue.search_titles(query, limit)))

    @router.get(
        "/v1/items/{item_id:path}",
        response_model_exclude_none=True,
        responses=problems(404),
    )
    def item(item_id: str, string_ids: StringIds = False) -> ItemResponse:
        """Describes an item."""
        bundle = api.live.bundle
        item_idx = find_id(bundle.catalogue.vocabulary, item_id, "item_id", "items")
        (described,) = ItemWriter(bundle, string_ids).items([item_idx])
        return ItemResponse(item=described, num_users=int(bundle.catalogue.counts[item_idx]), bundle=bundle.version)

    return router


def health_routes(api: Api) -> APIRouter:
    """Returns the routes that probes ask."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> Health:
        """Reports that the process is up, whatever its stages do."""
        return Health(bundle=api.live.bundle.version)

    @router.get("/readyz", responses=problems())
    async def readyz() -> Ready:
        """Reports that both stages answer, by asking them for popular items."""
        bundle = api.live.bundle
        await api.ask(LiveArm(LIVE, bundle), RecallQuery(k=1))
        failure = _swap_failure(api)
        return Ready(status="ready" if failure is None else "degraded", bundle=bundle.version, swap_failure=failure)

    return router


def _describe(arm: LiveArm) -> ArmDescription:
    assert arm.arm is not None
    return ArmDescription(**arm.arm.model_dump())


def _swap_failure(api: Api) -> SwapProblem | None:
    failure = api.live.failure
    return None if failure is None else SwapProblem(version=failure.version, reason=failure.reason)
