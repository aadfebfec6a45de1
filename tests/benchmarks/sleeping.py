"""Engines and learners whose work is a sleep, in the product's own processes: what is left of the clock is the
framework's.

Around them is everything real: the engine's loop and its Ray actor, batching, delivery, publishing and the canary,
one learner each.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from longshort.backends import ray_cluster
from longshort.backends.engines.engine_loop import EngineLoop
from longshort.backends.engines.remote_engine import RemoteEngine
from longshort.backends.learners.remote_learner import RemoteLearner
from longshort.backends.time_share import NoTimeShare
from longshort.backends.weight_transfer import ObjectStore
from longshort.miniature.tokenizer import build_tokenizer
from longshort.pair import LivePolicy
from longshort.recipe.schema import LongShortConfig
from longshort.types import ROLES, Completion, Sampling

LOGPROB = -1.0


class SleepingCore:
    """An engine of `slots` places whose step takes `seconds` for each turn that it is writing: a device that is
    always busy.

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
        self._queue.append(
            {"id": request_id, "left": sampling.max_tokens, "tokens": sampling.max_tokens, "updates": []}
        )

    def abort(self, request_ids: Sequence[str]) -> None:
        self._queue = deque(turn for turn in self._queue if turn["id"] not in request_ids)
        self._writing = [turn for turn in self._writing if turn["id"] not in request_ids]

    def step(self) -> list[tuple[str, Completion]]:
        while self._queue and len(self._writing) < self.slots:
            self._writing.append(self._queue.popleft())
        time.sleep(self._cost())
        self.decoded += 1
        for turn in self._writing:
            turn["left"] -= 1
        finished = [turn for turn in self._writing if not turn["left"]]
        self._writing = [turn for turn in self._writing if turn["left"]]
        return [(turn["id"], self._completion(turn)) for turn in finished]

    def _cost(self) -> float:
        return self.seconds * len(self._writing)

    def _completion(self, turn: Mapping[str, Any]) -> Completion:
        count, updates = turn["tokens"], tuple(turn["updates"])
        began = self.version - len(updates)
        return Completion(
            token_ids=(7,) * count,
            logprobs=(LOGPROB,) * count,
            text="7" * count,
            stop="length",
            version=began,
            updates=updates,
        )

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        for turn in self._writing:
            turn["updates"].append(turn["tokens"] - turn["left"])
        self.version = version


class TalkingCore(SleepingCore):
    """One whose turns end with a tag after a few tokens, drawn from the request's seed; the short model hands back
    every third time.

    A step takes `seconds` however many turns it is writing, as a GPU's nearly does: a place left empty is a loss. Its
    words are `word`.
    """

    def __init__(self, slots: int, seconds: float, word: int):
        super().__init__(slots, seconds)
        self.word = word

    def add(self, request_id: str, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        super().add(request_id, prompt_ids, sampling)
        turn, dice = self._queue[-1], random.Random(sampling.seed)
        wanted = dice.randint(6, 24)
        if wanted <= sampling.max_tokens and sampling.stop_token_ids:
            closing = -1 if dice.random() < 1 / 3 else 0
            turn |= {
                "tokens": wanted,
                "left": wanted,
                "end": (sampling.stop_token_ids[closing], sampling.stop[closing]),
            }

    def _cost(self) -> float:
        return self.seconds

    def written(self) -> Iterator[tuple[str, Sequence[int]]]:
        for turn in self._writing:
            yield turn["id"], (self.word,) * (turn["tokens"] - turn["left"])

    def _completion(self, turn: Mapping[str, Any]) -> Completion:
        end, stop = turn.get("end", (self.word, "length"))
        count = turn["tokens"] - 1
        ids = (*(self.word,) * count, end)
        return Completion(
            token_ids=ids, logprobs=(LOGPROB,) * len(ids), text="7" * (count + (stop == "length")), stop=stop, version=0
        )


class SleepingEngine(EngineLoop):
    """As EngineActor of longshort/backends/ray_cluster.py, with one of these cores."""

    def __init__(self, core: type[SleepingCore], *arguments: Any):
        super().__init__(lambda: core(*arguments))

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


def remote_engine(
    role: str, config: LongShortConfig, tokenizer, core: type[SleepingCore], *arguments: Any
) -> RemoteEngine:
    """As `ray_cluster.make_engine`: an engine with such a core in a process of its own."""
    actor = ray.remote(SleepingEngine).options(num_cpus=0, max_concurrency=8)
    return RemoteEngine(
        role,
        config,
        tokenizer,
        engine=config.role(role).engine,
        backend="sleeping",
        model="",
        spawn=lambda: actor.remote(core, *arguments),
        kill=_kill,
        failure=RayError,
    )


def _kill(actor, pid: int | None) -> None:
    ray.kill(actor)


@contextlib.contextmanager
def policies(config: LongShortConfig, *, seconds: float, update_s: float = 0.0) -> Iterator[dict[str, LivePolicy]]:
    """Both roles, with as many places as the recipe's `max_num_seqs`; the cluster must be up."""
    with contextlib.ExitStack() as undo:
        live = {}
        for role in ROLES:
            learner = ray.remote(SleepingLearner).options(num_cpus=0)
            sampler = remote_engine(
                role, config, build_tokenizer(role), SleepingCore, config.role(role).engine.max_num_seqs, seconds
            )
            undo.callback(sampler.close)
            trainer = RemoteLearner(role, [learner.remote(update_s)], kill=_kill, death=RayActorError)
            undo.callback(trainer.close)
            live[role] = LivePolicy(role, sampler, trainer, config, ObjectStore(trainer), NoTimeShare())
        yield live


async def start(live: Mapping[str, LivePolicy]) -> None:
    """Wait until the processes are there."""
    for policy in live.values():
        await policy.engine.start()
        await policy.learner.ready()


def cluster(config: LongShortConfig) -> Callable[[], None]:
    """Start the cluster; returns what ends it."""
    return ray_cluster.start(config)
