"""What drivers need of calls to other processes: the answer, and the reason of a failure. Knows no library."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from longshort.types import LongShortError


async def result_of(reference: Awaitable[Any]) -> Any:
    """Await a reference to a remote result, so that it can be a task, or wait with a deadline."""
    return await reference


def cause_of(error: BaseException) -> BaseException:
    """Return the LongShortError that the other process raised, unwrapped; any other error as it is."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, LongShortError) else error


def reason_of(error: BaseException) -> str:
    """The last line of what went wrong, as short as it can be told."""
    text = str(getattr(error, "cause", None) or error) or type(error).__name__
    return text.strip().splitlines()[-1][:300]
