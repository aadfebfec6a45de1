"""The door of the server: who may call, from where, and how much they may send. Nothing behind it runs for whom it turns away."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longshort.serving.http_errors import ApiError
from longshort.serving.metrics import Metrics

BODY_TIMEOUT_S = 30.0
"""In which a request's body must have arrived."""
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")]
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware that refuses requests by host name, origin, type and key, and counts every answer.

    A web page elsewhere that a user of this machine opens can reach a server on loopback: under a name of its own that resolves to
    127.0.0.1 (hence the check of Host), or by a form or fetch (hence the check of Origin, and JSON bodies only). No CORS header is sent.
    `hosts`: names that Host may hold, empty for any; `partners`: host names of other pages that may call, e.g. those behind a proxy.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, hosts: Collection[str], partners: Collection[str], api_key: str
    ):
        self._app, self._metrics = app, metrics
        self._hosts, self._partners, self._key = frozenset(hosts), frozenset(partners), api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # as nginx calls a caller who left before the answer

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        try:
            self._check(Request(scope))
            await self._app(scope, receive, counted)
        except ApiError as error:
            await error.response()(scope, receive, counted)
        finally:
            self._metrics.answered(scope["path"], status, time.monotonic() - began)

    def _check(self, request: Request) -> None:
        netloc = request.headers.get("host", "")
        if self._hosts and _name(netloc) not in self._hosts:
            raise ApiError(
                403, f"{netloc!r} is not a name of this server; add it to serve.allowed_hosts", code="unknown_host"
            )
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin", "")
            elsewhere = origin.partition("://")[2]
            if origin and elsewhere != netloc and _name(elsewhere) not in self._partners:
                raise ApiError(
                    403, f"requests from pages of {origin} are refused; see serve.allowed_hosts", code="cross_origin"
                )
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"the body must be JSON, with Content-Type: application/json (got {kind!r})")
        if self._key and request.url.path.startswith("/v1/"):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key):
                raise ApiError(
                    401, "the API key is missing or wrong; send Authorization: Bearer <key>", code="invalid_api_key"
                )


def _name(netloc: str) -> str:
    """`LocalHost:8000` -> `localhost`, `[::1]:8000` -> `::1`; empty for what is no host name."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body; ApiError 413 beyond `limit` bytes without reading on, 408 where it does not arrive in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise ApiError(
                        413,
                        f"the body is larger than {limit} bytes (serve.max_request_bytes)",
                        code="request_too_large",
                    )
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)
