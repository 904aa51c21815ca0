"""The API's routes for stock lists."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request
from starlette.responses import Response

from ray_recsys.core.recommending.stock_lists import NAME
from ray_recsys.errors import ConflictError, RegistryError
from ray_recsys.serving.api import Api
from ray_recsys.serving.gateway import list_body_bytes, read_body
from ray_recsys.serving.problems import Problem, unavailable, unknown_id
from ray_recsys.serving.resolve import check_length
from ray_recsys.serving.routes import body_schema, problems
from ray_recsys.serving.schemas import ListDescription, ListRequest, ListsResponse

_Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$", description="Letters, digits, - and _")]


def list_routes(api: Api) -> APIRouter:
    """Returns the routes for lists; with keys they need the scope `admin`."""
    router = APIRouter(tags=["lists"])
    lists = api.stock.lists

    @router.get("/v1/lists", responses=problems())
    def list_lists() -> ListsResponse:
        """Lists the stock lists."""
        index = sorted(lists.index().items())
        return ListsResponse(
            lists=tuple(ListDescription(name=name, num_items=entry.num_items) for name, entry in index)
        )

    @router.put(
        "/v1/lists/{name}",
        responses=problems(400, 409, 413),
        openapi_extra=body_schema(ListRequest),
    )
    async def put_list(name: _Name, request: Request) -> ListDescription:
        """Uploads a list, or replaces it; every replica uses it within a second or two."""
        body = ListRequest.model_validate_json(await read_body(request.receive, list_body_bytes(api.limits)))
        check_length("item_ids", len(body.item_ids), api.limits.max_list_items)
        try:
            entry = await asyncio.to_thread(lists.put, name, body.item_ids)
        except ConflictError:
            raise unavailable() from None
        except RegistryError as error:
            raise Problem(409, "too-many", "Too many lists", error.message, field="name", value=name) from None
        api.stock.forget()
        return ListDescription(name=name, num_items=entry.num_items)

    @router.delete("/v1/lists/{name}", status_code=204, responses=problems(404))
    async def delete_list(name: _Name) -> Response:
        """Removes a list."""
        try:
            if not await asyncio.to_thread(lists.delete, name):
                raise unknown_id("name", name, "lists", "the registry")
        except ConflictError:
            raise unavailable() from None
        api.stock.forget()
        return Response(status_code=204)

    return router
