"""One question to the team, and the dialogue about it as events while it is being written.

An ask is an episode: `run_episode` of longshort/dialogue/rollout.py plays it, as in training. What an ask wants otherwise than the team was
trained for (`Ask`) is put around its protocol (`Asked`); who listens is put around its engines (`converse`).

    TurnBegan(role="long", number=0)  Piece(role="long", text="7^6: 9 3 1")  Piece(role="long", text=" 7 9")  TurnEnded(turn=…)
    TurnBegan(role="short", number=1)  Piece(role="short", text="\\boxed{3}")  TurnEnded(turn=…)
    Finished(episode=…, text="\\boxed{3}", finish_reason="stop")
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from longshort.dialogue.encoding import END_THINK, ROLE_TAGS
from longshort.dialogue.protocols import LongShort
from longshort.dialogue.rollout import Decoding, Engine, run_episode
from longshort.dialogue.turns import LENGTH_STOPS
from longshort.types import LONG, SHORT, Completion, Episode, LongShortError, Problem, Sampling, Turn

PAIR = "pair"
MODES = (PAIR, LONG, SHORT)
RESERVED = frozenset((*ROLE_TAGS, *LENGTH_STOPS, "eos", "length", "abort"))
"""What a Completion's `stop` means something by: a string of the user's must not pass for it."""


class ImpossibleAsk(LongShortError):
    """A setting of an ask that nobody can fulfil; `field` is its name."""

    def __init__(self, field: str, what: str):
        super().__init__(f"{field} {what}")
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A question, who answers it, and within which bounds. None stands for the team's own setting.

    `mode`: "pair", or "long" or "short" for that model alone in its role. `max_turns`: thinking and answering again at most so often.
    `max_tokens`: sampled tokens of the whole episode, both models together. `long_token_budget`: the long model's over the whole
    episode; once they are spent its thought is closed where it stands and the short model must finish. `temperature` 0 is greedy;
    `top_k` 0 is off. `stop`: strings that end the answer where they appear in what the answering model writes, before it.
    Raises ImpossibleAsk.

    Ask(question="What is 1+1?", max_turns=2, temperature=0.0)
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
        if self.mode not in MODES:
            raise ImpossibleAsk("mode", f"is {self.mode!r}; known: {', '.join(MODES)}")
        _check_texts(self)
        _check_bounds(self)
        _check_sampling(self)


def _check_texts(ask: Ask) -> None:
    if not ask.question.strip():
        raise ImpossibleAsk("question", "is empty; ask something")
    if not all(ask.stop):
        raise ImpossibleAsk("stop", "holds an empty string, which would end every answer at once; leave it out")
    if taken := sorted(RESERVED.intersection(ask.stop)):
        raise ImpossibleAsk(
            "stop", f"holds {', '.join(taken)}, by which the team itself says how a message ended; leave it out"
        )
    for name, text in (("question", ask.question), ("stop", "".join(ask.stop))):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ImpossibleAsk(
                name, "holds half a character (a lone surrogate), which no tokenizer knows; send whole ones"
            )


def _check_bounds(ask: Ask) -> None:
    for name in ("max_turns", "max_tokens", "long_token_budget"):
        value = getattr(ask, name)
        if value is not None and value < 1:
            raise ImpossibleAsk(name, f"is {value}; give at least 1, or leave it out")
    if ask.mode != PAIR and ask.max_turns is not None:
        raise ImpossibleAsk("max_turns", f"counts exchanges of the pair, and mode {ask.mode!r} has none; leave it out")
    if ask.mode == SHORT and ask.long_token_budget is not None:
        raise ImpossibleAsk(
            "long_token_budget", "is for the long model, who does not speak in mode 'short'; leave it out"
        )


def _check_sampling(ask: Ask) -> None:
    if ask.temperature is not None and not 0 <= ask.temperature < math.inf:
        raise ImpossibleAsk("temperature", f"is {ask.temperature}; give 0 (greedy) or more")
    if ask.top_p is not None and not 0 < ask.top_p <= 1:
        raise ImpossibleAsk("top_p", f"is {ask.top_p}; give more than 0 and at most 1")
    if ask.top_k is not None and ask.top_k < 0:
        raise ImpossibleAsk("top_k", f"is {ask.top_k}; give 0 (off) or more")


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
    """The last event. `text` is the answer, empty where there is none; `finish_reason` is "stop", or "length" where a bound ended it."""

    episode: Episode
    text: str
    finish_reason: str


Event = TurnBegan | Piece | TurnEnded | Finished


def finished(episode: Episode, protocol) -> Finished:
    """How an episode ended, in an endpoint's words; a model that ended its turn by itself, outside the protocol, also says "stop"."""
    by_itself = episode.stop in ("answered", "malformed")
    return Finished(episode=episode, text=protocol.final_text(episode), finish_reason="stop" if by_itself else "length")


class Asked:
    """A team's protocol under the bounds of one ask. `answering` is the role whose message may be the answer."""

    def __init__(self, protocol, ask: Ask):
        self._protocol, self._ask = protocol, ask
        self.roles, self.tags = protocol.roles, protocol.tags
        self.answering = protocol.roles[-1]

    def next(self, turns: Sequence[Turn]) -> str:
        if turns and turns[-1].role == self.answering and turns[-1].completion.stop in self._ask.stop:
            return "answered"
        return self._now(turns).next(turns)

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer) -> tuple[int, ...]:
        return self._now(turns).render(problem, turns, speaker, tokenizer)

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        limits = [self._protocol.budget(turns, speaker, prompt_tokens, context)]
        if self._ask.max_tokens is not None:
            limits.append((self._ask.max_tokens - _written(turns), "episode_length"))
        if speaker == LONG and self._ask.long_token_budget is not None:
            left = self._ask.long_token_budget - _written(turns, LONG)
            # Cut, its thought passes for a closed one, so that the partner answers with what there is.
            limits.append((left, END_THINK if left > 0 and SHORT in self.roles else "episode_length"))
        return min(limits, key=lambda limit: limit[0])

    def stops(self, speaker: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        tags, ids = self._protocol.stops(speaker, tokenizer)
        return tags + (self._ask.stop if speaker == self.answering else ()), ids

    def final_text(self, episode: Episode) -> str:
        return self._protocol.final_text(episode)

    def _now(self, turns: Sequence[Turn]):
        """The protocol; when the long model has spent its budget this exchange is the last one, and the short model is told so."""
        budget = self._ask.long_token_budget
        if budget is None or not isinstance(self._protocol, LongShort) or _written(turns, LONG) < budget:
            return self._protocol
        last = copy.copy(self._protocol)
        last.max_exchanges = min(last.max_exchanges, (len(turns) + 1) // 2)
        return last


def _written(turns: Sequence[Turn], *roles: str) -> int:
    """Tokens sampled in these turns, by these roles (default: by everyone)."""
    return sum(len(turn.completion.token_ids) for turn in turns if not roles or turn.role in roles)


async def converse(
    engines: Mapping[str, Engine], protocol, problem: Problem, decoding: Decoding, seed: int
) -> AsyncIterator[TurnBegan | Piece | TurnEnded | Finished]:
    """Play an episode and tell of it; `aclose` (or a cancelled consumer) ends it and frees the engines.

    `engines` are those that can be watched: `generate(prompt_ids, sampling, watch)` (backends/engines/remote_engine.py, LocalEngine). Raises what
    the episode raises, and LongShortError where an engine that had to be replaced writes another text than the pieces told already.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()
    numbers = itertools.count()
    watched = {role: _Watched(engine, role, numbers, events.put_nowait) for role, engine in engines.items()}
    told = _Told(protocol, events.put_nowait)
    task = asyncio.create_task(run_episode(problem, watched, told, decoding, seed))
    task.add_done_callback(lambda _: events.put_nowait(None))
    try:
        while (event := await events.get()) is not None:
            yield event
        if task.cancelled():
            raise LongShortError("the team was closed while it was answering; ask again when it is back")
        yield finished(task.result(), protocol)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class _Told:
    """A protocol that tells of every turn when it is asked who comes next: only then is it known how the turn ended."""

    def __init__(self, protocol, tell: Callable[[Event], None]):
        self._protocol, self._tell = protocol, tell
        self.render, self.budget, self.stops = protocol.render, protocol.budget, protocol.stops

    def next(self, turns: Sequence[Turn]) -> str:
        if turns:
            self._tell(TurnEnded(turn=turns[-1]))
        return self._protocol.next(turns)


class _Watched:
    """An engine that tells of a turn while it is being written."""

    def __init__(self, engine, role: str, numbers: itertools.count, tell: Callable[[Event], None]):
        self._engine, self._role, self._numbers, self._tell = engine, role, numbers, tell
        self.tokenizer, self.context = engine.tokenizer, engine.context

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        self._tell(TurnBegan(role=self._role, number=next(self._numbers)))
        draft = Draft(self.tokenizer, sampling.stop[len(sampling.stop_token_ids) :])
        completion = await self._engine.generate(prompt_ids, sampling, lambda ids: self._say(draft.read(ids)))
        self._say(draft.rest(completion.text))
        return completion

    def _say(self, text: str) -> None:
        if text:
            self._tell(Piece(role=self._role, text=text))


class Draft:
    """The text of a turn in the making, as far as it is certain: no half characters, nothing that may become one of the stop strings."""

    def __init__(self, tokenizer, stop: Sequence[str]):
        self._tokenizer, self._stop = tokenizer, stop
        self._ids: list[int] = []
        self._start = 0
        self._text, self._told = "", 0

    def read(self, ids: Sequence[int]) -> str:
        """What is new and certain in the turn's ids so far, or nothing while a turn that is written again has not come so far yet."""
        if list(ids[: len(self._ids)]) != self._ids:
            return ""
        # Only the last stretch is decoded, with what went before it: some tokenizers write a token's space by what precedes it.
        before = self._decode(self._ids[self._start :])
        now = self._decode(ids[self._start :])
        if now.endswith("\ufffd") or len(now) <= len(before):
            return ""
        self._text += now[len(before) :]
        self._start, self._ids = len(self._ids), list(ids)
        certain = len(self._text) - max((_overlap(self._text, stop) for stop in self._stop), default=0)
        piece, self._told = self._text[self._told : certain], max(self._told, certain)
        return piece

    def rest(self, text: str) -> str:
        """What of the finished turn's text has not been told; LongShortError if it is not how the turn began."""
        if not text.startswith(self._text[: self._told]):
            raise LongShortError("an engine had to be replaced and wrote this turn anew with another text; ask again")
        return text[self._told :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is how `stop` begins."""
    return next((size for size in range(min(len(stop), len(text)), 0, -1) if text.endswith(stop[:size])), 0)
