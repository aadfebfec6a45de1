"""Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}} and an HTTP status."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from longshort.team.conversation import ImpossibleQuery, QuestionTooLong
from longshort.types import LongShortError

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Other statuses are an `invalid_request_error` below 500 and a `server_error` from there on."""


class ApiError(LongShortError):
    """What the caller reads. `param` is the field at fault; the request may work `retry_after` seconds later."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(_sendable(message))
        self.status, self.code, self.retry_after = status, code, retry_after
        self.param = None if param is None else _sendable(param)

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def _sendable(text: str) -> str:
    """Return a text that can be sent: half a character, which a request may hold, is written as its number."""
    return text.encode(errors="backslashreplace").decode()


def api_error(error: BaseException, where: str = "") -> ApiError:
    """Return any exception as what the caller gets. Of a bug it is the type only; the traceback is for the log."""
    match error:
        case ApiError():
            return error
        case QuestionTooLong():
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        case ImpossibleQuery(field=field):
            return ApiError(400, str(error), param=field, code="invalid_value")
        case LongShortError():
            return ApiError(503, str(error), code="engine_failed", retry_after=1)
        case HTTPException(status_code=status, detail=detail):
            return ApiError(status, f"{detail}: {where}")
    return ApiError(500, f"internal error ({type(error).__name__}); see the server's log")


async def on_error(request: Request, error: Exception) -> Response:
    """Answer a request that raised; a client that has left gets an empty 499, which it never reads."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)
    return api_error(error, f"{request.method} {request.url.path}").response()
