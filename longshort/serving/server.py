"""The endpoint: OpenAI's routes over a team.

request -> Guard -> read_request -> Run (Gate, then team.converse or team.ask, one task per answer) -> Reply, whole or as a stream
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from longshort.serving.admission import FAREWELL_S, Gate
from longshort.serving.guard import Guard, read_body
from longshort.serving.http_errors import ApiError, bug, on_api_error, on_bug, on_gone, on_http_exception
from longshort.serving.metrics import FAILED, Metrics
from longshort.serving.replies import DONE, Chat, Reply, Telling, Text, sse
from longshort.serving.requests import ChatRequest, Sampled, TextRequest, read_request
from longshort.serving.run import Batch, Run
from longshort.serving.wire import told
from longshort.team.conversation import PAIR, Ask, Finished, Piece
from longshort.team.team import Team

SHAPES = {ChatRequest: Chat, TextRequest: Text}
Result = TypeVar("Result")


class Service:
    """A live team behind HTTP: `app` is the ASGI application, `gate.drain` ends it in order.

    `team` is a started longshort/team/team.py Team, `name` what callers name as the model.
    `hosts`: the names under which the server may be called, empty for any; `pages`: routes beside the API's.
    """

    def __init__(
        self, team: Team, *, name: str, api_key: str = "", hosts: Sequence[str] = (), pages: Sequence[Route] = ()
    ):
        self.team, self.name, self.settings = team, name, team.config.serve
        self.gate = Gate(capacity=team.capacity, max_queue=self.settings.max_queue)
        self.metrics = Metrics(self.gate, team.stats, team.protocol.roles)
        self._born = int(time.time())
        partners = self.settings.allowed_hosts
        guard = Middleware(
            Guard,
            metrics=self.metrics,
            hosts=[*hosts, *partners] if hosts else partners,
            partners=partners,
            api_key=api_key,
        )
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", functools.partial(self.answer, ChatRequest), methods=["POST"]),
                Route("/v1/completions", functools.partial(self.answer, TextRequest), methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
                Route("/metrics", self.exposition),
                *pages,
            ],
            middleware=[guard],
            exception_handlers={
                ApiError: on_api_error,
                HTTPException: on_http_exception,
                ClientDisconnect: on_gone,
                Exception: on_bug,
            },
        )

    async def answer(self, kind: type[Sampled], request: Request) -> Response:
        """Both kinds of completions."""
        began = time.monotonic()
        asked = read_request(kind, await read_body(request, self.settings.max_request_bytes))
        self._check_name(asked.model or self.name)
        together, options = asked.mode == PAIR and len(self.team.protocol.roles) > 1, asked.stream_options
        reply = Reply(
            SHAPES[kind], self.name, together=together, per_question=asked.n, include_usage=options.include_usage
        )
        asks, play = asked.asks(), self.team.converse if asked.stream else self._in_one
        async with contextlib.AsyncExitStack() as undo:
            run = Run(asks, play, gate=self.gate, metrics=self.metrics, timeout_s=self.settings.timeout_s)
            await undo.enter_async_context(run)
            if not asked.stream:
                return JSONResponse(reply.complete(await _unless_gone(request, run.outcome())))
            batches = run.batches()
            first = await _unless_gone(
                request, anext(batches)
            )  # so that what goes wrong until now has a status of its own
            tellings = [Telling(together) for _ in asks]
            text_came = functools.partial(self.metrics.text_came, began)
            return EventStream(
                stream(first, batches, reply, tellings, options.include_dialogue, text_came), undo.pop_all()
            )

    async def _in_one(self, ask: Ask) -> AsyncIterator[Finished]:
        """The only event that a caller who does not stream needs: nobody watches the engines for it."""
        yield await self.team.ask(ask)

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> JSONResponse:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._card())

    def _check_name(self, name: str) -> None:
        if name != self.name:
            raise ApiError(
                404,
                f"the model {name!r} does not exist; this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def _card(self) -> dict[str, Any]:
        context = min(self.team.config.role(role).engine.max_model_len for role in self.team.protocol.roles)
        return {
            "id": self.name,
            "object": "model",
            "created": self._born,
            "owned_by": "longshort",
            "max_model_len": context,
        }

    async def health(self, request: Request) -> JSONResponse:
        """200 where the next request would be taken (a restarting engine keeps it waiting); 503 while draining, or without an engine."""
        status = "draining" if self.gate.draining else await self.metrics.ask_engines()
        body = {"status": status, "running": self.gate.running, "queued": self.gate.waiting}
        return JSONResponse(body, 503 if status in ("draining", FAILED) else 200)

    async def exposition(self, request: Request) -> Response:
        return Response(await self.metrics.page(), media_type="text/plain; version=0.0.4")


async def stream(
    first: Batch,
    batches: AsyncIterator[Batch],
    reply: Reply,
    tellings: Sequence[Telling],
    dialogue: bool,
    text_came: Callable[[], None],
) -> AsyncIterator[bytes]:
    """The body of a streamed answer: all chunks of a batch in one write. An error is an event of its own, and the stream ends."""
    ends: dict[int, Finished] = {}
    silent = True
    yield b"".join(map(reply.opening, range(len(tellings))))
    try:
        async for batch in _from(first, batches):
            chunks = []
            for index, event in batch:
                if dialogue:
                    chunks.append(reply.dialogue(told(event)))
                chunks += [reply.delta(index, field, text) for field, text in tellings[index].told(event)]
                if silent and isinstance(event, Piece):
                    silent = False
                    text_came()
                if isinstance(event, Finished):
                    ends[index] = event
                    chunks.append(reply.closing(index, event))
            yield b"".join(chunks)
        yield reply.ending([ends[index] for index in range(len(tellings))])
    except ApiError as error:
        yield sse(error.body) + DONE
    except Exception as error:  # raised further, it would cut the response off before its end
        logging.getLogger(__name__).exception("internal error under a stream")
        yield sse(bug(error).body) + DONE


async def _from(first: Batch, batches: AsyncIterator[Batch]) -> AsyncIterator[Batch]:
    yield first
    async for batch in batches:
        yield batch


class EventStream(StreamingResponse):
    """Server-sent events; a caller who leaves ends what `run` holds, at once.

    Starlette's own response and not sse-starlette's, which patches uvicorn's signal handling to cut all streams when the server is told to
    stop: here they are finished first.
    """

    def __init__(self, chunks: AsyncIterator[bytes], run: contextlib.AsyncExitStack):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(chunks, headers=headers, media_type="text/event-stream")
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._run:
            await super().__call__(scope, receive, send)


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The work's result; ClientDisconnect, and the work cancelled, if the caller leaves before it is there."""
    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (doing, leaving):
            task.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Listener(uvicorn.Server):
    """uvicorn without its own reaction to signals, which would close the door before the answers under way are done."""

    def __init__(self, app: Starlette, *, keep_alive_s: int):
        gc.collect()
        gc.freeze()  # what the libraries made stays; looking through it again and again would hold up every answer
        quiet = {"log_config": None, "access_log": False, "lifespan": "off", "server_header": False}
        super().__init__(
            uvicorn.Config(app, timeout_keep_alive=keep_alive_s, timeout_graceful_shutdown=FAREWELL_S, **quiet)
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
