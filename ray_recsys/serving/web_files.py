"""The page's static files, read once at startup; any other path is a 404, so none can reach the file system."""

import hashlib
import mimetypes
from importlib.resources import files

from fastapi import APIRouter, Request
from starlette.responses import Response

_ENDINGS = (".html", ".css", ".js", ".svg")
_PAGES = {"index.html": "/", "docs.html": "/docs"}


def web_routes() -> APIRouter:
    """Returns a GET route for each file: index.html at `/`, docs.html at `/docs`."""
    router = APIRouter(include_in_schema=False)
    for entry in files("ray_recsys.web").iterdir():
        if entry.name.endswith(_ENDINGS):
            _add_file(router, _PAGES.get(entry.name, f"/{entry.name}"), entry.name, entry.read_bytes())
    return router


def _add_file(router: APIRouter, path: str, name: str, content: bytes) -> None:
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "frame-ancestors 'none'",
    }
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    router.add_api_route(path, send, methods=["GET", "HEAD"])
