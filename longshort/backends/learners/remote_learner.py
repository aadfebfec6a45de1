"""The driver's side of a learner in other processes: one, or several ranks that do everything together.

Ray-free: what kills a process, and the error of one that died, are handed in (longshort/backends/ray_cluster.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longshort.backends.remote import reason_of, result_of
from longshort.types import LongShortError, Sample
from longshort.waiting import cancel_and_wait

SETTLE_S = 5.0
"""Seconds to wait for more errors once a rank has failed: the error of the rank that died is often not the first."""


class RemoteLearner:
    """The methods of TorchLearner, awaited. All ranks run each; the result is the first rank's.

    A process that dies is a LongShortError. So is a rank that fails alone or keeps the others waiting for
    `learner.timeout_s`: the error names it, and the others are ended because they would wait for it.
    """

    def __init__(
        self,
        role: str,
        actors: Sequence[Any],
        *,
        kill: Callable[[Any, int | None], None],
        death: type[BaseException],
        joined: Sequence[Any] = (),
    ):
        self.role, self._actors, self._kill, self._death, self._joined = role, actors, kill, death, joined

    async def _call(self, method: str, *arguments: Any) -> Any:
        if self._joined:
            joined, self._joined = self._joined, ()
            await self._first(joined)
        return await self._first([actor.call.remote(method, *arguments) for actor in self._actors])

    async def send(self, step: str, *arguments: Any) -> Any:
        """Run a step of the learner's half of a weight transfer (longshort/backends/weights/weight_outbox.py)."""
        return await self._first([actor.send.remote(step, *arguments) for actor in self._actors])

    async def address(self) -> tuple[str, int]:
        """Return the address and a free port of rank 0's node, for an engine to meet it."""
        return await self._first([self._actors[0].address.remote()])

    async def ready(self) -> None:
        """Wait until every rank has loaded its model."""
        await self._call("ready")

    async def update(self, samples: Sequence[Sample]) -> dict[str, float]:
        return await self._call("update", list(samples))

    async def gaps(self) -> list[list[float] | None]:
        return await self._call("gaps")

    async def score(self, prompt_ids: Sequence[int], token_ids: Sequence[int], temperature: float) -> list[float]:
        return await self._call("score", prompt_ids, token_ids, temperature)

    async def save(self, model_folder: Path, state_folder: Path) -> None:
        await self._call("save", str(model_folder), str(state_folder))

    async def load(self, state_folder: Path) -> None:
        await self._call("load", str(state_folder))

    async def free_cache(self) -> None:
        """Give back the GPU memory that only an update needs."""
        await self._call("free_cache")

    def weights(self) -> Any:
        """Return a reference to the weights in the object store, not the weights."""
        first, *_ = [actor.call.remote("weights") for actor in self._actors]
        return first

    def close(self) -> None:
        for actor in self._actors:
            self._kill(actor, None)

    async def _first(self, references: Sequence[Any]) -> Any:
        """Return the first rank's result, once all ranks have one."""
        tasks = [asyncio.ensure_future(result_of(reference)) for reference in references]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            if any(task.done() and task.exception() for task in tasks):
                await asyncio.wait(tasks, timeout=SETTLE_S)
        finally:
            await cancel_and_wait(task for task in tasks if not task.done())
        silent = [rank for rank, task in enumerate(tasks) if task.cancelled()]
        errors = {rank: error for rank, task in enumerate(tasks) if rank not in silent and (error := task.exception())}
        if errors:
            raise self._failure(errors, silent)
        return tasks[0].result()

    def _failure(self, errors: Mapping[int, BaseException], silent: Sequence[int]) -> BaseException:
        """Return the error to raise; unless all ranks refuse for the same reason, end them."""
        ranks = len(self._actors)
        dead = {rank: error for rank, error in errors.items() if isinstance(error, self._death)}
        agreed = len(errors) == ranks and all(isinstance(error, LongShortError) for error in errors.values())
        if agreed or (ranks == 1 and not dead):
            return errors[0]
        self.close()
        reasons = [f"rank {rank} of {ranks}: {reason_of(error)}" for rank, error in (dead or errors).items()]
        if not dead:
            reasons = [f"rank {rank} of {ranks} gives no sign of life" for rank in silent] + reasons
        reason = "; ".join(reasons) if ranks > 1 else reason_of(dead[0])
        return LongShortError(
            f"the {self.role} learner {'died' if dead else 'failed'}: {reason}; resume from the last checkpoint"
        )
