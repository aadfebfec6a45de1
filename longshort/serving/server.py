"""The endpoint: OpenAI's routes over a team.

request -> Guard -> read_request -> Gate -> team.ask for a whole answer, team.converse for a stream -> Reply
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
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
from longshort.serving.errors import ApiError, api_error, on_error
from longshort.serving.guard import Guard, for_pages_of, read_body
from longshort.serving.metrics import FAILED, Metrics
from longshort.serving.replies import Reply
from longshort.serving.requests import ChatRequest, TextRequest, read_request
from longshort.serving.responses import ResponseReply, ResponseRequest
from longshort.team.conversation import PAIR, Event, Finished, ImpossibleQuery, Piece, Query
from longshort.team.team import Team
from longshort.types import LongShortError
from longshort.waiting import cancel_and_wait, gather_or_cancel

Result = TypeVar("Result")
AnyRequest = ChatRequest | TextRequest | ResponseRequest
Arrivals = asyncio.Queue[tuple[int, Event] | BaseException]
"""The events of several answers as they come, with the number of the answer; or the error that ended one of them."""
KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection, so that it is never closed under a request of theirs."""


class Service:
    """A live team behind HTTP: `app` is the ASGI application, `gate.drain` ends it in good order.

    `team` is a started Team, `name` what clients name as the model. `hosts` are the names under which the server may be
    called, empty for any; `pages` are routes beside the API's.
    """

    def __init__(
        self, team: Team, *, name: str, api_key: str = "", hosts: Sequence[str] = (), pages: Sequence[Route] = ()
    ):
        self.team, self.name, self.settings = team, name, team.config.serve
        self.gate = Gate(capacity=team.capacity, max_queue=self.settings.max_queue, timeout_s=self.settings.timeout_s)
        self.metrics = Metrics(self.gate, team.stats, team.protocol.roles)
        self._started = int(time.time())
        partners = self.settings.allowed_hosts
        origins = self.settings.allowed_origins
        guard = Middleware(
            Guard,
            metrics=self.metrics,
            hosts=[*hosts, *partners] if hosts else partners,
            partners=partners,
            origins=origins,
            api_key=api_key,
        )
        routes = [
            Route("/v1/chat/completions", functools.partial(self.answer, ChatRequest), methods=["POST"]),
            Route("/v1/completions", functools.partial(self.answer, TextRequest), methods=["POST"]),
            Route("/v1/responses", functools.partial(self.answer, ResponseRequest), methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/metrics", self.exposition),
            *pages,
        ]
        handlers = dict.fromkeys((LongShortError, HTTPException, ClientDisconnect, Exception), on_error)
        cors = [for_pages_of(origins)] if origins else []  # outside, so that a page can read what the guard refuses
        self.app = Starlette(routes=routes, middleware=[*cors, guard], exception_handlers=handlers)

    async def answer(self, kind: type[AnyRequest], request: Request) -> Response:
        """Answer a request of any kind, whole or as a stream."""
        began = time.monotonic()
        body = read_request(kind, await read_body(request, self.settings.max_request_bytes))
        self._check_name(body.model or self.name)
        try:
            return await self._answered(request, body, body.queries(), began)
        except ImpossibleQuery as error:
            raise body.refusal(error) from None

    async def _answered(self, request: Request, body: AnyRequest, queries: Sequence[Query], began: float) -> Response:
        reply = self._reply(body, len(queries))
        async with contextlib.AsyncExitStack() as undo:
            undo.enter_context(self.gate.admitted(len(queries)))
            if not body.stream:
                return JSONResponse(
                    reply.whole(await unless_gone(request, gather_or_cancel(*map(self._end_of, queries))))
                )
            arrivals = await undo.enter_async_context(self._played(queries))
            first = await unless_gone(request, arrivals.get())
            if isinstance(first, BaseException):  # until now an error still has a status of its own
                raise first
            return EventStream(self._chunks(reply, first, arrivals, began), undo.pop_all())

    def _reply(self, body: AnyRequest, count: int) -> Reply | ResponseReply:
        pair = body.mode == PAIR and len(self.team.protocol.roles) > 1
        if isinstance(body, ResponseRequest):
            return ResponseReply(self.name, body, pair=pair)
        return Reply(
            self.name,
            chat=isinstance(body, ChatRequest),
            pair=pair,
            count=count,
            per_question=body.per_question,
            options=body.stream_options,
        )

    async def _end_of(self, query: Query) -> Finished:
        """Play one query for a client that does not stream."""
        async with self.gate.place():
            end = await self.team.ask(query)
        self.metrics.ended(end.episode)
        return end

    @contextlib.asynccontextmanager
    async def _played(self, queries: Sequence[Query]) -> AsyncIterator[Arrivals]:
        """Play all queries side by side while the block runs. Leaving it cancels the rest and frees the engines."""
        arrivals: Arrivals = asyncio.Queue()

        async def play(index: int, query: Query) -> None:
            async with self.gate.place(), contextlib.aclosing(self.team.converse(query)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        self.metrics.ended(event.episode)
                    arrivals.put_nowait((index, event))

        def ended(task: asyncio.Task[None]) -> None:
            if task.cancelled():  # by the team, which was closed
                arrivals.put_nowait(ApiError(503, "the server is shutting down", code="draining"))
            elif error := task.exception():
                arrivals.put_nowait(error)

        tasks = [asyncio.create_task(play(index, query)) for index, query in enumerate(queries)]
        for task in tasks:
            task.add_done_callback(ended)
        try:
            yield arrivals
        finally:
            await cancel_and_wait(tasks)

    async def _chunks(
        self, reply: Reply | ResponseReply, first: tuple[int, Event], arrivals: Arrivals, began: float
    ) -> AsyncIterator[bytes]:
        """Yield the body of a streamed answer, everything that arrived meanwhile in one write. An error is an event of
        its own and ends the stream."""
        silent, arrived = True, [first]
        yield reply.opening()
        try:
            while True:
                while not arrivals.empty():
                    arrived.append(_event(arrivals.get_nowait()))
                if silent and any(isinstance(event, Piece) for _, event in arrived):
                    silent = False
                    self.metrics.first_text(began)
                yield b"".join(reply.chunks(index, event) for index, event in arrived)
                if reply.complete:
                    break
                arrived = [_event(await arrivals.get())]
            yield reply.ending()
        except Exception as error:  # raised further, it would cut the response off before its end
            if not isinstance(error, LongShortError):
                logging.getLogger(__name__).exception("internal error under a stream")
            yield reply.failed(api_error(error))

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._model_card()]})

    async def model(self, request: Request) -> JSONResponse:
        self._check_name(request.path_params["name"])
        return JSONResponse(self._model_card())

    def _check_name(self, name: str) -> None:
        if name != self.name:
            message = f"the model {name!r} does not exist; this server has {self.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def _model_card(self) -> dict[str, Any]:
        context = min(self.team.config.role(role).engine.max_model_len for role in self.team.protocol.roles)
        head = {"id": self.name, "object": "model", "created": self._started, "owned_by": "longshort"}
        return head | {"max_model_len": context}

    async def health(self, request: Request) -> JSONResponse:
        """Return 200 if the next request would be taken, 503 while draining or if an engine has failed."""
        status = "draining" if self.gate.draining else await self.metrics.ask_engines()
        body = {"status": status, "running": self.gate.running, "queued": self.gate.waiting}
        return JSONResponse(body, 503 if status in ("draining", FAILED) else 200)

    async def exposition(self, request: Request) -> Response:
        return Response(await self.metrics.page(), media_type="text/plain; version=0.0.4")


def _event(arrival: tuple[int, Event] | BaseException) -> tuple[int, Event]:
    if isinstance(arrival, BaseException):
        raise arrival
    return arrival


class EventStream(StreamingResponse):
    """Server-sent events. When the client leaves, what `run` holds ends at once.

    It is Starlette's own response, because sse-starlette makes uvicorn cut all streams when the server stops;
    here they are finished first.
    """

    def __init__(self, chunks: AsyncIterator[bytes], run: contextlib.AsyncExitStack):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(chunks, headers=headers, media_type="text/event-stream")
        self._run = run

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._run:
            await super().__call__(scope, receive, send)


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Return the work's result; if the client leaves first, cancel the work and raise ClientDisconnect."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    doing, leaving = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        await cancel_and_wait((doing, leaving))


class Listener(uvicorn.Server):
    """uvicorn without its own reaction to signals, which would close the door before the answers under way are done."""

    def __init__(self, app: Starlette):
        gc.collect()
        gc.freeze()  # the libraries' objects stay; searching them again and again would delay every answer
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=FAREWELL_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
