"""One question to the team, and the dialogue about it as events while it is written.

A query is an episode: `run_episode` (longshort/dialogue/rollout.py) plays it, as in training. `LimitedProtocol` puts
the query's limits around the team's protocol, and `converse` reports what the engines write.

    TurnBegan(role="long", number=0)  Piece(role="long", text="7^6: 9 3 1")  Piece(role="long", text=" 7 9")
    TurnEnded(turn=…)
    TurnBegan(role="short", number=1)  Piece(role="short", text="\\boxed{3}")  TurnEnded(turn=…)
    Finished(episode=…, text="\\boxed{3}", finish_reason="stop")
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from longshort.dialogue.encoding import END_THINK, ROLE_TAGS
from longshort.dialogue.plain_text import decode_plain, settled
from longshort.dialogue.protocols import LongShort
from longshort.dialogue.rollout import Decoding, Engine, run_episode
from longshort.dialogue.turns import LENGTH_STOPS, TurnProtocol
from longshort.types import LONG, SHORT, Completion, Episode, LongShortError, Problem, Sampling, Turn
from longshort.waiting import cancel_and_wait

PAIR = "pair"
MODES = (PAIR, LONG, SHORT)
RESERVED = frozenset((*ROLE_TAGS, *LENGTH_STOPS, "eos", "length", "abort"))
"""Strings with a meaning as a Completion's `stop`; a user's stop string must not pass for one."""


class ImpossibleQuery(LongShortError):
    """A setting that no answer can have; `field` is its name."""

    def __init__(self, field: str, what: str):
        super().__init__(f"{field} {what}")
        self.field = field


class QuestionTooLong(ImpossibleQuery):
    """A question that fills a model's context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A question, who answers it, and within which limits. None means the team's own setting.

    `mode`: "pair", or "long" or "short" for that model alone. `max_turns`: exchanges (a thought and what the short
    model makes of it). `max_tokens`: sampled tokens of the whole episode. `long_token_budget`: those of the long model;
    when they are spent, its thought is closed where it stands and the short model must answer. `temperature` 0 is
    greedy, `top_k` 0 is off. `stop`: strings that end the answer; the answering model is searched for them, not the
    thoughts. Raises ImpossibleQuery.

    Query(question="What is 1+1?", max_turns=2, temperature=0.0)
    """

    question: str
    mode: str = PAIR
    max_turns: int | None = None
    max_tokens: int | None = None
    long_token_budget: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.mode in MODES, "mode", f"is {self.mode!r}; known: {', '.join(MODES)}")
        _require(bool(self.question.strip()), "question", "is empty; ask something")
        _require(all(self.stop), "stop", "holds an empty string, which would end every answer at once; leave it out")
        taken = sorted(RESERVED.intersection(self.stop))
        _require(not taken, "stop", f"holds {', '.join(taken)}, which the protocol itself uses; leave it out")
        for name, text in (("question", self.question), ("stop", "".join(self.stop))):
            halves = any("\ud800" <= character <= "\udfff" for character in text)
            _require(not halves, name, "holds half a character (a lone surrogate), which is no text; send whole ones")
        for name in ("max_turns", "max_tokens", "long_token_budget"):
            value = getattr(self, name)
            _require(value is None or value >= 1, name, f"is {value}; give at least 1, or leave it out")
        if self.mode != PAIR:
            no_turns = f"counts exchanges, of which mode {self.mode!r} has none; leave it out"
            _require(self.max_turns is None, "max_turns", no_turns)
        if self.mode == SHORT:
            no_long = "is for the long model, which mode 'short' never asks; leave it out"
            _require(self.long_token_budget is None, "long_token_budget", no_long)
        temperature, top_p, top_k = self.temperature, self.top_p, self.top_k
        possible = temperature is None or 0 <= temperature < math.inf
        _require(possible, "temperature", f"is {temperature}; give 0 (greedy) or more")
        _require(top_p is None or 0 < top_p <= 1, "top_p", f"is {top_p}; give more than 0 and at most 1")
        _require(top_k is None or top_k >= 0, "top_k", f"is {top_k}; give 0 (off) or more")


def _require(condition: bool, field: str, what: str) -> None:
    if not condition:
        raise ImpossibleQuery(field, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnBegan:
    """`role` has been asked to write; `number` counts the turns of the episode from 0."""

    role: str
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """More of the turn that `role` is writing: whole characters, and nothing of a closing tag."""

    role: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """A turn is complete; its pieces, one after the other, are its `completion.text`."""

    turn: Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The last event. `text` is the answer or "", `finish_reason` is "length" if a limit ended it, else "stop"."""

    episode: Episode
    text: str
    finish_reason: str


Event = TurnBegan | Piece | TurnEnded | Finished


class WatchableEngine(Engine, Protocol):
    """An engine that calls `watch(ids so far)` while it writes (longshort/backends/engines/remote_engine.py)."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: Sampling, watch: Callable[[Sequence[int]], None] | None = None
    ) -> Completion: ...


class LimitedProtocol:
    """A team's protocol within the limits of one query: the part of a TurnProtocol that a rollout uses.

    `answering` is the role whose message may be the answer. `on_turn` is called with every turn that has ended.
    """

    def __init__(self, protocol: TurnProtocol, query: Query, on_turn: Callable[[Turn], None] | None = None):
        self.protocol, self.query, self._on_turn = protocol, query, on_turn
        self.roles, self.answering = protocol.roles, protocol.roles[-1]

    async def play(self, problem: Problem, engines: Mapping[str, Engine], decoding: Decoding) -> Finished:
        """Play the episode. A model that ended its turn outside the protocol also has the finish reason "stop"."""
        rules = cast(TurnProtocol, self)  # a rollout uses next, render, budget and stops only
        episode = await run_episode(problem, engines, rules, decoding, self.query.seed)
        reason = "stop" if episode.stop in ("answered", "malformed") else "length"
        return Finished(episode=episode, text=self.protocol.final_text(episode), finish_reason=reason)

    def next(self, turns: Sequence[Turn]) -> str:
        if turns and self._on_turn:  # only now is it known how the turn ended
            self._on_turn(turns[-1])
        if turns and turns[-1].role == self.answering and turns[-1].completion.stop in self.query.stop:
            return "answered"
        return self._current(turns).next(turns)

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer: Any) -> tuple[int, ...]:
        return self._current(turns).render(problem, turns, speaker, tokenizer)

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        limits = [self.protocol.budget(turns, speaker, prompt_tokens, context)]
        if self.query.max_tokens is not None:
            limits.append((self.query.max_tokens - _written(turns, self.roles), "episode_length"))
        if speaker == LONG and self.query.long_token_budget is not None:
            left = self.query.long_token_budget - _written(turns, (LONG,))
            # A thought that is cut passes for a closed one, so that the partner answers with what there is.
            limits.append((left, END_THINK if left > 0 and SHORT in self.roles else "episode_length"))
        return min(limits, key=lambda limit: limit[0])

    def stops(self, speaker: str, tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        tags, ids = self.protocol.stops(speaker, tokenizer)
        return tags + (self.query.stop if speaker == self.answering else ()), ids

    def _current(self, turns: Sequence[Turn]) -> TurnProtocol:
        """Return the protocol; once the long model's budget is spent, with this exchange as the last one."""
        budget, protocol = self.query.long_token_budget, self.protocol
        if budget is None or not isinstance(protocol, LongShort) or _written(turns, (LONG,)) < budget:
            return protocol
        last = copy.copy(protocol)
        last.max_exchanges = min(last.max_exchanges, (len(turns) + 1) // 2)
        return last


def _written(turns: Sequence[Turn], roles: Sequence[str]) -> int:
    """Count the tokens that these roles sampled."""
    return sum(len(turn.completion.token_ids) for turn in turns if turn.role in roles)


async def converse(
    engines: Mapping[str, WatchableEngine], limited: LimitedProtocol, problem: Problem, decoding: Decoding
) -> AsyncGenerator[Event, None]:
    """Play an episode and yield its events; `aclose`, or cancelling the consumer, ends it and frees the engines.

    Raises what the episode raises, and LongShortError if an engine that had to be replaced writes another text than the
    pieces that were yielded already.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    numbers = itertools.count()
    watched = {role: _WatchedEngine(engine, role, numbers, events.put_nowait) for role, engine in engines.items()}
    reporting = LimitedProtocol(
        limited.protocol, limited.query, on_turn=lambda turn: events.put_nowait(TurnEnded(turn=turn))
    )
    task = asyncio.create_task(reporting.play(problem, watched, decoding))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        if task.cancelled():
            raise LongShortError("the team was closed while it was answering; ask again when it is back")
        yield task.result()
    finally:
        await cancel_and_wait([task])


class _WatchedEngine:
    """An engine that reports a turn while it is written."""

    def __init__(self, engine: WatchableEngine, role: str, numbers: itertools.count, report: Callable[[Event], None]):
        self._engine, self._role, self._numbers, self._report = engine, role, numbers, report
        self.tokenizer, self.context = engine.tokenizer, engine.context

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        self._report(TurnBegan(role=self._role, number=next(self._numbers)))
        turn = TurnText(self.tokenizer, sampling.stop[len(sampling.stop_token_ids) :])
        completion = await self._engine.generate(prompt_ids, sampling, lambda ids: self._piece(turn.read(ids)))
        self._piece(turn.finish(completion.text))
        return completion

    def _piece(self, text: str) -> None:
        if text:
            self._report(Piece(role=self._role, text=text))


class TurnText:
    """The text of a growing turn as far as it is certain: no half characters, nothing that may become a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._start = 0
        self._text, self._reported = "", 0

    def read(self, ids: Sequence[int]) -> str:
        """Return what is new and certain in the turn's ids so far; "" while a turn that is written again catches up."""
        if list(ids[: len(self._ids)]) != self._ids:
            return ""
        # Decode only the newest ids, after those before them: some tokenizers write a token's space by its predecessor.
        ids = settled(self._tokenizer, ids)
        before = decode_plain(self._tokenizer, self._ids[self._start :])
        now = decode_plain(self._tokenizer, ids[self._start :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._text += now[len(before) :]
        self._start, self._ids = len(self._ids), list(ids)
        certain = len(self._text) - max((_overlap(self._text, stop) for stop in self._stop), default=0)
        piece, self._reported = self._text[self._reported : certain], max(self._reported, certain)
        return piece

    def finish(self, text: str) -> str:
        """Return what of the finished turn's text has not been returned; LongShortError if it began differently."""
        if not text.startswith(self._text[: self._reported]):
            raise LongShortError("an engine had to be replaced and wrote this turn again with another text; ask again")
        return text[self._reported :]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)
