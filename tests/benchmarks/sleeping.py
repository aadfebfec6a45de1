"""Engines and learners whose work is a sleep, in the product's own processes: what is left of the clock is the framework's.

Around them is everything real: the engine's loop and its Ray actor, batching, delivery, publishing and the canary, one learner each.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from longshort.backends import ray_cluster
from longshort.backends.engine_loop import EngineLoop
from longshort.backends.remote_engine import RemoteEngine
from longshort.backends.remote_learner import RemoteLearner
from longshort.config import LongShortConfig
from longshort.miniature.tokenizer import build_tokenizer
from longshort.pair import LivePolicy
from longshort.types import ROLES, Completion, Sampling

LOGPROB = -1.0


class SleepingCore:
    """An engine of `slots` places whose step takes `seconds` for each turn that it is writing: a device that is always busy.

    `seconds` of (0.002,) makes a lone turn take 2 ms per token. Its words are all the same digit.
    """

    def __init__(self, slots: int, seconds: float):
        self.slots, self.seconds, self.version = slots, seconds, 0
        self.decoded = self.prompt_tokens = self.cached_tokens = 0
        self._queue: deque[dict[str, Any]] = deque()
        self._writing: list[dict[str, Any]] = []

    @property
    def busy(self) -> bool:
        return bool(self._queue or self._writing)

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        self.prompt_tokens += len(prompt_ids)
        self._queue.append({"id": request_id, "left": sampling.max_tokens, "tokens": sampling.max_tokens, "updates": []})

    def abort(self, request_ids: Sequence[str]) -> None:
        self._queue = deque(turn for turn in self._queue if turn["id"] not in request_ids)
        self._writing = [turn for turn in self._writing if turn["id"] not in request_ids]

    def step(self) -> list[tuple[str, Completion]]:
        while self._queue and len(self._writing) < self.slots:
            self._writing.append(self._queue.popleft())
        time.sleep(self.seconds * len(self._writing))
        self.decoded += 1
        for turn in self._writing:
            turn["left"] -= 1
        finished = [turn for turn in self._writing if not turn["left"]]
        self._writing = [turn for turn in self._writing if turn["left"]]
        return [(turn["id"], self._completion(turn)) for turn in finished]

    def _completion(self, turn: Mapping[str, Any]) -> Completion:
        count, updates = turn["tokens"], tuple(turn["updates"])
        began = self.version - len(updates)
        return Completion(
            token_ids=(7,) * count, logprobs=(LOGPROB,) * count, text="7" * count, stop="length", version=began, updates=updates
        )

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        for turn in self._writing:
            turn["updates"].append(turn["tokens"] - turn["left"])
        self.version = version


class SleepingEngine(EngineLoop):
    """As EngineActor of longshort/backends/ray_cluster.py."""

    def __init__(self, slots: int, seconds: float):
        super().__init__(lambda: SleepingCore(slots, seconds))

    def ready(self) -> int:
        return os.getpid()


class SleepingLearner:
    """As LearnerActor: its update takes `seconds`."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def call(self, method: str, *arguments: Any) -> Any:
        answers: dict[str, Callable[[], Any]] = {
            "ready": lambda: None,
            "weights": dict,
            "update": lambda: time.sleep(self.seconds) or {"optimizer_steps": 1.0},
            "score": lambda: [LOGPROB] * len(arguments[1]),
        }
        return answers[method]()


@contextlib.contextmanager
def policies(config: LongShortConfig, *, seconds: float, update_s: float = 0.0) -> Iterator[dict[str, LivePolicy]]:
    """Both roles, with as many places as the recipe's `max_num_seqs`; the cluster must be up."""
    with contextlib.ExitStack() as undo:
        live = {}
        for role in ROLES:
            engine = config.role(role).engine
            actor, learner = (
                ray.remote(SleepingEngine).options(num_cpus=0, max_concurrency=8),
                ray.remote(SleepingLearner).options(num_cpus=0),
            )
            spawn = lambda actor=actor, engine=engine: actor.remote(engine.max_num_seqs, seconds)  # noqa: E731
            kill = lambda actor, pid: ray.kill(actor)  # noqa: E731
            sampler = RemoteEngine(
                role,
                config,
                build_tokenizer(role),
                engine=engine,
                backend="sleeping",
                model="",
                spawn=spawn,
                kill=kill,
                failures=(RayError,),
            )
            undo.callback(sampler.close)
            trainer = RemoteLearner(role, [learner.remote(update_s)], kill=kill, death=RayActorError)
            undo.callback(trainer.close)
            live[role] = LivePolicy(role, sampler, trainer, config)
        yield live


async def start(live: Mapping[str, LivePolicy]) -> None:
    """Wait until the processes are there."""
    for policy in live.values():
        await policy.engine.start()
        await policy.learner.call("ready")


def cluster(config: LongShortConfig) -> Callable[[], None]:
    """Start the cluster; returns what ends it."""
    return ray_cluster.start(config)
