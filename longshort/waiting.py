"""Waiting for several tasks at once without leaving one behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def cancel_and_wait(tasks: Iterable[asyncio.Future]) -> None:
    """Cancel the tasks and wait until each has ended; their errors are dropped."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def gather_or_cancel(*awaitables: Awaitable[T]) -> list[T]:
    """Await all side by side. When one fails or the caller is cancelled, cancel the others and wait for their end."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await cancel_and_wait(task for task in tasks if not task.done())
