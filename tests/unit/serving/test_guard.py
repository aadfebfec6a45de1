"""What the guard refuses before a handler sees the request; no server runs, the application is called itself."""

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse

from longshort.serving.guard import Guard


class NoMetrics:
    def answered(self, path, status, seconds):
        pass


def asked(headers, api_key=""):
    """Ask an application that answers "through"; return what came back."""
    app = Guard(PlainTextResponse("through"), metrics=NoMetrics(), hosts=(), partners=(), origins=(), api_key=api_key)  # pyright: ignore

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post("/v1/responses", content=b"{}", headers=headers)

    return asyncio.run(ask())


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_body_is_refused_as_one(coding):
    answer = asked({"content-type": "application/json", "content-encoding": coding})
    assert answer.status_code == 415
    assert answer.json()["error"]["message"] == (
        f"the body has Content-Encoding: {coding}; send it as it is, without compression"
    )


@pytest.mark.parametrize("more", [{}, {"content-encoding": "identity"}])
def test_a_body_as_it_is_passes(more):
    assert asked({"content-type": "application/json"} | more).text == "through"


def test_a_key_beyond_ascii_is_known_by_the_bytes_that_clients_send():
    sent = {"content-type": "application/json", "authorization": "Bearer schlüssel".encode()}
    assert asked(sent, api_key="schlüssel").text == "through"
    assert asked(sent, api_key="schlussel").status_code == 401
