"""Calls to other processes, as the driver sees them: the answer, or the reason of a failure. Imports no library."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from longshort.types import LongShortError


async def result_of(reference: Awaitable[Any]) -> Any:
    """Await a remote result; a LongShortError of the other process is raised as itself."""
    try:
        return await reference
    except Exception as error:
        if isinstance(cause := getattr(error, "cause", None), LongShortError):
            raise cause from None
        raise


def reason_of(error: BaseException) -> str:
    """Return the last line of an error's message, or of the error that the other process raised."""
    text = str(getattr(error, "cause", None) or error) or type(error).__name__
    return text.strip().splitlines()[-1][:300]
