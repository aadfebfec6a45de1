"""The recipe's section `serve`."""

from __future__ import annotations

from pydantic import Field

from longshort.recipe.sections import Amount, Natural, Rate, Section


class ServeConfig(Section):
    """What `longshort serve` takes on, and how it leaves."""

    max_queue: Natural = 256
    """Answers that may wait for a place beside those under way; a request beyond them is refused at once (429)."""
    max_request_bytes: int = Field(2**20, ge=1024)
    timeout_s: Rate = 600.0
    """From a request's arrival to the end of its answer; what takes longer is given up (504)."""
    drain_s: Amount = 30.0
    """After SIGTERM, for the answers under way."""
    allowed_hosts: list[str] = []
    """Host names under which the server may be called, besides those of loopback; needed behind a proxy."""
