"""`longshort serve`: the endpoint on a port, from the first line on the terminal to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import json
import os
import socket
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from longshort import console, interruption
from longshort.types import LongShortError

if TYPE_CHECKING:
    from longshort.team.team import Team

NEEDS = ("starlette", "uvicorn", "prometheus_client")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def serve(
    source: str, *, host: str, port: int, name: str = "", key_file: str | None = None, overrides: Sequence[str] = ()
) -> None:
    """Serve a team until SIGINT or SIGTERM, then finish what is running (for `serve.drain_s`) and return.

    LongShortError for a missing package, a port in use, an unusable key, or a team that cannot start.
    """
    if missing := [package for package in NEEDS if not find_spec(package)]:
        raise LongShortError(f"longshort serve needs {', '.join(missing)}, not installed; pip install -e '.[serve]'")
    from longshort.team.team import Team

    key = read_key(key_file)
    with contextlib.closing(listen(host, port)) as listening:
        team = Team.from_pretrained(source, overrides=overrides)
        interruption.run(_serve(team, listening, is_loopback(host), name or team.name, key))


def read_key(file: str | None) -> str:
    """Return the API key in `file`, else that of LONGSHORT_API_KEY, else "". Neither shows in process lists or in a
    shell's history."""
    if file is None:
        key = os.environ.get("LONGSHORT_API_KEY", "").strip()
        if not key.isascii() or len(key.split()) > 1:
            raise LongShortError("LONGSHORT_API_KEY is no key; a key is one ASCII word without spaces")
        return key
    try:
        words = Path(file).read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError) as error:
        raise LongShortError(f"--api-key-file {file} cannot be read as a key ({error}); give one ASCII word") from error
    if len(words) != 1:
        raise LongShortError(f"--api-key-file {file} holds {len(words)} words; a key is one word without spaces")
    return words[0]


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket before any model is loaded; it accepts no connection until the server listens on it."""
    if not 0 <= port < 2**16:
        raise LongShortError(f"--port {port} is not a port; give 0 (any that is free) to 65535")
    with contextlib.ExitStack() as undo:
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            listening = undo.enter_context(contextlib.closing(socket.socket(family, socket.SOCK_STREAM)))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                remedy = "choose another with --port, or stop what listens there"
                raise LongShortError(f"port {port} on {host} is in use; {remedy}") from error
            raise LongShortError(f"cannot listen on --host {host}, --port {port}: {error}; choose others") from error
        undo.pop_all()
    return listening


def is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


async def _serve(team: Team, listening: socket.socket, loopback: bool, name: str, key: str) -> None:
    from longshort.serving.page import page_routes
    from longshort.serving.server import Listener, Service

    hosts, drain_s = [*LOOPBACK, listening.getsockname()[0]] if loopback else [], team.config.serve.drain_s
    async with team:
        service = Service(team, name=name, api_key=key, hosts=hosts, pages=page_routes())
        server, stop = Listener(service.app), asyncio.Event()
        with interruption.graceful(stop, f"finishing the answers under way, for {drain_s:g} s at most"):
            serving, stopping = asyncio.create_task(server.serve(sockets=[listening])), asyncio.create_task(stop.wait())
            try:
                console.say("\n".join(greeting(team, name, _address(listening), key=bool(key), loopback=loopback)))
                await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
                finished = await service.gate.drain(drain_s)
                late = f"; some answers were not done within {drain_s:g} s (serve.drain_s)"
                console.say(f"stopped{'' if finished else late}")
            except asyncio.CancelledError:  # a second signal
                server.force_exit = True
                raise
            finally:
                stopping.cancel()
                server.should_exit = True
                await serving


def greeting(team: Team, name: str, address: str, *, key: bool, loopback: bool) -> Iterator[str]:
    """Yield what the person who starts the server needs to know: where it is, who answers, the limits, how to ask."""
    settings = team.config.serve
    yield f"serving {name} at {address} (OpenAI's API at {address}/v1, a page to chat at {address}/, /health, /metrics)"
    for role in team.protocol.roles:
        engine = team.config.role(role).engine
        yield f"  {role}: {team.models[role]}, context {engine.max_model_len}, {engine.max_num_seqs} at once"
    yield (
        f"  {team.capacity} answers at once, {settings.max_queue} more wait; {settings.max_request_bytes} bytes a "
        f"request, {settings.timeout_s:g} s an answer; key: {'required' if key else 'none'}"
    )
    if not loopback and not key:
        yield "! anyone who reaches this address may use the models: set LONGSHORT_API_KEY or --api-key-file"
    if settings.allowed_origins and not key:
        pages = ", ".join(settings.allowed_origins)
        yield f"! whoever visits {pages} may use the models: set LONGSHORT_API_KEY or --api-key-file"
    if not loopback and not settings.allowed_hosts:
        yield "! any host name is accepted; name those of this server in serve.allowed_hosts"
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "What is 1+1?"}]})
    header = ' -H "Authorization: Bearer $LONGSHORT_API_KEY"' if key else ""
    yield f"  curl {address}/v1/chat/completions -H 'Content-Type: application/json'{header} -d '{body}'"


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
