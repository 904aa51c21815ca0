"""Errors as RFC 9457 problem details: each names the field, the value and the limit; none shows a stack trace."""

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

MEDIA_TYPE = "application/problem+json"
_MAX_SHOWN = 200  # characters of a quoted value
_LIMITS = ("ge", "gt", "le", "lt", "max_length", "min_length", "expected")

logger = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818  (the RFC's term)
    """An error with the response that reports it."""

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        field: str | None = None,
        value: Any = None,
        limit: str | int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "type": f"urn:ray-recsys:problem:{kind}",
            "title": title,
            "status": status,
            "detail": detail,
        }
        if field is not None:
            self.body |= {"field": field, "value": shown(value), "limit": limit}

    def response(self) -> Response:
        """Returns the HTTP response."""
        body = json.dumps(self.body, ensure_ascii=True, allow_nan=False)
        return Response(body, self.status, self.headers, media_type=MEDIA_TYPE)


def invalid_value(field: str, value: Any, limit: str | int, detail: str | None = None) -> Problem:
    """Returns the problem of a value of the wrong type or out of range."""
    text = detail or f"{field} = {shown(value)!r}: the maximum is {limit}"
    return Problem(422, "invalid-value", "Invalid value", text, field=field, value=value, limit=limit)


def unknown_id(field: str, value: Any, among: str, of: str = "the live bundle") -> Problem:
    """Returns the problem of an unknown id; `among` is "users", "items" or "lists"."""
    limit = f"{among} of {of}"
    detail = f"{field} = {shown(value)!r} is not one of the {limit}"
    return Problem(404, "unknown-id", "Unknown id", detail, field=field, value=value, limit=limit)


def overloaded() -> Problem:
    """Returns the problem of a full queue."""
    return _retryable("overloaded", "Too many requests", "the request queue is full")


def timed_out(timeout_s: float) -> Problem:
    """Returns the problem of stages that do not answer in time."""
    return _retryable("timed-out", "Timed out", f"the stages did not answer within serve.timeout_s = {timeout_s:g} s")


def unavailable() -> Problem:
    """Returns the problem of a replica that died and is being replaced."""
    return _retryable("unavailable", "Temporarily unavailable", "a replica is being restarted")


def _retryable(kind: str, title: str, detail: str) -> Problem:
    return Problem(503, kind, title, f"{detail}; retry after 1 s", headers={"Retry-After": "1"})


def from_validation(errors: Sequence[Mapping[str, Any]]) -> Problem:
    """Returns the problem of pydantic's first error."""
    error = errors[0]
    if error["type"] == "json_invalid":
        reason = error.get("ctx", {}).get("error", "the body is not JSON")
        detail = f"the body is not JSON: {reason}"
        return Problem(400, "malformed-json", "Malformed JSON", detail, field="body", limit="a JSON object")
    field = _field_of(error["loc"])
    value = error.get("input")
    # pydantic reports one error per member of a union
    reason = " or ".join(dict.fromkeys(other["msg"] for other in errors if _field_of(other["loc"]) == field))
    limit = next((error["ctx"][name] for name in _LIMITS if name in error.get("ctx", {})), reason)
    return invalid_value(field, value, limit, f"{field} = {shown(value)!r}: {reason}")


def _field_of(location: Sequence[str | int]) -> str:
    """Returns `history.3` for ("history", 3, "int"): pydantic appends the union member that it tried."""
    kept = [part for depth, part in enumerate(location) if depth == 0 or isinstance(part, int)]
    return ".".join(str(part) for part in kept) or "body"


def shown(value: Any) -> Any:
    """Returns a value as quoted in a problem: numbers and short strings unchanged, anything else truncated."""
    if value is None or isinstance(value, bool) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def problem_of(error: Exception) -> Problem:
    """Returns the problem that reports an error raised while a request was answered."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ValidationError):
        return from_validation(error.errors())
    logger.error("a request failed", exc_info=error)
    return Problem(500, "failure", "Internal error", "see the server's log")


def answer_problems(app: FastAPI) -> None:
    """Makes an app report every error as a problem."""

    @app.exception_handler(Problem)
    async def _problem(_: Request, problem: Problem) -> Response:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def _invalid_parameter(_: Request, error: RequestValidationError) -> Response:
        # FastAPI puts the kind of parameter first: ("query", "limit")
        return from_validation([{**one, "loc": one["loc"][1:]} for one in error.errors()]).response()

    @app.exception_handler(ValidationError)
    async def _invalid_body(_: Request, error: ValidationError) -> Response:
        return problem_of(error).response()

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        return _from_http(request, error).response()

    @app.exception_handler(Exception)
    async def _failure(_: Request, error: Exception) -> Response:
        return problem_of(error).response()


def _from_http(request: Request, error: HTTPException) -> Problem:
    title, path, headers = HTTPStatus(error.status_code).phrase, request.url.path, error.headers
    if error.status_code == 404:
        detail = f"{shown(path)} does not exist; /docs lists the routes"
        return Problem(404, "not-found", title, detail, field="path", value=path, limit="see /docs")
    if error.status_code == 405:
        allowed = (headers or {}).get("Allow", "see /docs")
        detail = f"{request.method} is not allowed for {shown(path)}; allowed: {allowed}"
        return Problem(
            405, "method", title, detail, field="method", value=request.method, limit=allowed, headers=headers
        )
    return Problem(error.status_code, "http", title, str(error.detail), headers=headers)
