"""The web page at `/`: one file that talks only to the server it came from (page.js)."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from longshort.report.page import asset

HERE = Path(__file__).parent


def page_routes() -> list[Route]:
    """Return the route of `/`. It needs no key: the page holds no data, and its requests carry the key typed into it.

    The page's style and script run because their hashes stand in its policy; nothing else may.
    """
    style = asset("base.css") + _own("page.css")
    script = '"use strict";\n' + asset("base.js") + _own("page.js")
    text = _own("page.html").replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    page = HTMLResponse(text, headers={"Content-Security-Policy": policy, "Cache-Control": "no-cache"})

    async def root(request: Request) -> HTMLResponse:
        return page

    return [Route("/", root, methods=["GET"])]


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
