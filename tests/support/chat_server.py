"""An endpoint that follows a test's script: the page at `/`, the list of models, and a stream of scripted events."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from longshort.serving.page import page_routes


def turn(role: str, stop: str, *pieces: str, tokens: int) -> list[dict]:
    """The events of one turn."""
    said = [{"event": "piece", "role": role, "text": piece} for piece in pieces]
    return [
        {"event": "turn_began", "role": role},
        *said,
        {"event": "turn_ended", "role": role, "tokens": tokens, "stop": stop},
    ]


def finished(text: str, *, stop: str = "answered", hand_backs: int = 0) -> dict:
    return {
        "event": "finished",
        "stop": stop,
        "text": text,
        "finish_reason": "stop" if text else "length",
        "hand_backs": hand_backs,
    }


class Scripted:
    """`script` holds what is streamed: events, "pause" (until `go` is set), "break" (the stream ends), {"error": …}.

    `requests` are the bodies that came, `keys` their Authorization headers; `left` is set when a client leaves.
    """

    def __init__(self, key: str = ""):
        self.key, self.script, self.requests, self.keys, self.paths = key, [], [], [], []
        self.go, self.left = threading.Event(), threading.Event()
        routes = [Route("/v1/models", self.models), Route("/v1/chat/completions", self.chat, methods=["POST"])]
        self.app = Starlette(routes=[*page_routes(), *routes])

    def refusal(self, request: Request) -> JSONResponse | None:
        self.paths.append(request.url.path)
        self.keys.append(request.headers.get("authorization", ""))
        if self.key and self.keys[-1] != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key"}}, status_code=401)
        return None

    async def models(self, request: Request):
        return self.refusal(request) or JSONResponse(
            {"object": "list", "data": [{"id": "sum-team", "object": "model"}]}
        )

    async def chat(self, request: Request):
        if refusal := self.refusal(request):
            return refusal
        self.requests.append(await request.json())
        if isinstance(self.script, dict):
            return JSONResponse({"error": self.script}, status_code=429)
        return StreamingResponse(self.stream(), media_type="text/event-stream")

    async def stream(self):
        try:
            yield ": ping\r\n\r\n"
            for one in self.script:
                if one == "break":
                    return
                if one == "pause":
                    while not self.go.is_set():
                        await asyncio.sleep(0.01)
                    self.go.clear()
                    continue
                chunk = one if "error" in one else {"object": "chat.completion.chunk", "choices": [], "longshort": one}
                yield f"data: {json.dumps(chunk)}\r\n\r\n"
            yield "data: [DONE]\r\n\r\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise


@contextlib.contextmanager
def serving(app) -> Iterator[str]:
    """The address of the app, which runs in a thread while the block does."""
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
