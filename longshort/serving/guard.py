"""Who may call the server, from where, and how much they may send. A refused request never reaches a handler."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longshort.serving.errors import ApiError
from longshort.serving.metrics import Metrics

BODY_TIMEOUT_S = 30.0
"""Time within which a request's body must arrive."""
HEADERS = [(b"x-content-type-options", b"nosniff"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")]


class Guard:
    """ASGI middleware that checks host name, origin, content type and key of every request, and counts every answer.

    A foreign web page that is open on this machine can reach a server on loopback: under a host name that resolves to
    127.0.0.1, hence the check of Host, or by a form or fetch, hence the checks of Origin and Content-Type. `hosts` are
    the names that Host may hold (empty: any), `partners` the hosts of other pages that may call, e.g. of a proxy in
    front, `origins` other pages that may call and read the answers (`for_pages_of`). Host is checked here and not by
    Starlette's TrustedHostMiddleware, whose refusal is no OpenAI error and does not name the remedy.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        hosts: Collection[str],
        partners: Collection[str],
        origins: Collection[str],
        api_key: str,
    ):
        self._app, self._metrics = app, metrics
        self._hosts, self._partners, self._origins = frozenset(hosts), frozenset(partners), frozenset(origins)
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.monotonic(), 499  # nginx's status for a client that left before the answer

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
        except Exception:  # a bug of ours, which Starlette answers outside of this middleware
            status = 500
            raise
        finally:
            self._metrics.answered(scope["path"], status, time.monotonic() - began)

    def _check(self, request: Request) -> None:
        host = request.headers.get("host", "")
        if self._hosts and _hostname(host) not in self._hosts:
            raise ApiError(
                403, f"{host!r} is not a name of this server; add it to serve.allowed_hosts", code="unknown_host"
            )
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin", "")
            page = origin.partition("://")[2]
            if origin and page != host and _hostname(page) not in self._partners and origin not in self._origins:
                message = f"requests from pages of {origin} are refused; see serve.allowed_origins and allowed_hosts"
                raise ApiError(403, message, code="cross_origin")
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ApiError(415, f"the body must be JSON, with Content-Type: application/json (got {kind!r})")
            if (coding := request.headers.get("content-encoding", "identity")) != "identity":
                raise ApiError(415, f"the body has Content-Encoding: {coding}; send it as it is, without compression")
        if self._key and request.url.path.startswith("/v1/"):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1"), self._key):
                message = "the API key is missing or wrong; send Authorization: Bearer <key>"
                raise ApiError(401, message, code="invalid_api_key")


def for_pages_of(origins: Sequence[str]) -> Middleware:
    """Return the CORS headers with which browsers let pages of these origins call the server and read its answers.

    Cookies are not among what such a page may send; its key is a header that it sets itself.
    """
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],  # a browser must hear of Authorization by name, and Starlette answers with the names asked
        expose_headers=["Retry-After"],
        allow_private_network=True,  # a public page may be allowed to call a server on loopback
    )


def _hostname(netloc: str) -> str:
    """`LocalHost:8000` -> `localhost`, `[::1]:8000` -> `::1`; empty if it is not a host name."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").rstrip(".")
    except ValueError:
        return ""


async def read_body(request: Request, limit: int) -> bytes:
    """Return the whole body; ApiError 413 as soon as it exceeds `limit` bytes, 408 if it does not arrive in time."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    message = f"the body is larger than {limit} bytes (serve.max_request_bytes)"
                    raise ApiError(413, message, code="request_too_large")
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    return bytes(body)
