"""Refusals and failures as OpenAI's API words them: {"error": {"message", "type", "param", "code"}} and an HTTP status."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from longshort.team.conversation import ImpossibleAsk
from longshort.types import LongShortError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Of other statuses: `invalid_request_error` below 500, `server_error` from there on."""


class ApiError(LongShortError):
    """What the caller is told. `param` is the field at fault; `retry_after` says after how many seconds the same request may work."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def refused(error: ValidationError, known: Iterable[str]) -> ApiError:
    """The first mistake of a request body, naming the field."""
    item = error.errors()[0]
    param = ".".join(map(str, item["loc"])) or None
    if item["type"] == "extra_forbidden":
        return ApiError(
            400, f"unknown parameter {param!r}; known: {', '.join(known)}", param=param, code="unknown_parameter"
        )
    return ApiError(
        400, f"{param or 'the body'}: {item['msg'].removeprefix('Value error, ')}", param=param, code="invalid_value"
    )


def impossible(error: ImpossibleAsk) -> ApiError:
    """A setting that no answer of this team can have."""
    return ApiError(400, str(error), param=error.field, code="invalid_value")


async def on_api_error(request: Request, error: ApiError) -> JSONResponse:
    return error.response()


async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    """Starlette's own 404 and 405."""
    return ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}").response()


async def on_gone(request: Request, error: ClientDisconnect) -> Response:
    """The caller left; nobody reads this."""
    return Response(status_code=499)


async def on_bug(request: Request, error: Exception) -> JSONResponse:
    return bug(error).response()


def bug(error: Exception) -> ApiError:
    """What a caller learns of a mistake of ours; the traceback is in the server's log."""
    return ApiError(500, f"internal error ({type(error).__name__}); the server's log says more")
