"""Asking a model for JSON, checking what it says, and telling it what was wrong (arXiv 2505.11827, sections 3.1 and 3.3).

The published code asks again with the very same prompt and keeps the last answer even when its check failed. Here every fault is fed
back, and an answer that was never right is an error with a name.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.rollout import Engine, stable_seed
from longshort.types import Completion, LongShortError, Sampling

T = TypeVar("T")
QUOTED = 4000
"""Characters of a wrong answer that the next request quotes."""
RETRY_TEMPERATURE = 0.7
"""Least temperature of a second try: a greedy model would repeat the same wrong answer."""

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


class Fault(ValueError):
    """What is wrong with an answer, in words that its author can act on; `reason` is the name under which it is counted."""

    def __init__(self, text: str, reason: str = "bad_answer"):
        super().__init__(text, reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


class NoUsableAnswer(LongShortError):
    """Every try failed. `reason` is the last fault's ("bad_json", "bad_answer", "length", "context", or a check's own);
    `faults` tells each in order; `tries` counts how often the model was asked."""

    def __init__(self, reason: str, faults: Sequence[str], tries: int):
        super().__init__(reason, tuple(faults), tries)
        self.reason, self.faults, self.tries = reason, tuple(faults), tries

    def __str__(self) -> str:
        told = "; ".join(f"({number}) {fault}" for number, fault in enumerate(self.faults, 1))
        return f"no usable answer after {_times(self.tries)} ({self.reason}): {told}"


async def ask_json(
    engine: Engine,
    request: str,
    check: Callable[[Any], T | Awaitable[T]],
    *,
    tries: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> tuple[T, int]:
    """The first answer that `check` (plain or async) accepts; it raises ValueError, best a Fault, with a text that is fed back.

    Raises NoUsableAnswer after `tries` faults, and at once when the request leaves no room in the engine's context.
    """
    faults: list[Fault] = []
    prompt = encode_problem(engine.tokenizer, "", request)
    while len(faults) < tries:
        room = engine.context - len(prompt)
        if room < 1:
            faults.append(
                Fault(f"the request has {len(prompt)} tokens, the engine's context {engine.context}", "context")
            )
            raise NoUsableAnswer("context", [str(fault) for fault in faults], len(faults) - 1)
        sampling = Sampling(
            max_tokens=min(max_tokens, room),
            stop=(),
            temperature=max(temperature, RETRY_TEMPERATURE) if faults else temperature,
            seed=stable_seed(seed, "ask", len(faults)),
        )
        completion = await engine.generate(prompt, sampling)
        try:
            value = check(_parsed(completion, sampling.max_tokens, "length" if max_tokens <= room else "context"))
            return (await value if inspect.isawaitable(value) else value), len(faults) + 1
        except ValueError as error:
            faults.append(error if isinstance(error, Fault) else Fault(str(error)))
        prompt = encode_problem(engine.tokenizer, "", _again(request, completion.text, faults[-1]))
    raise NoUsableAnswer(faults[-1].reason, [str(fault) for fault in faults], len(faults))


def _again(request: str, answer: str, fault: Fault) -> str:
    """The request once more, with what was wrong. Always one user message: some chat templates render only the first message (the
    miniature's), some drop or rewrite earlier assistant turns (those of reasoning models), some tokenizers have no template at all."""
    quoted = answer if len(answer) <= QUOTED else answer[:QUOTED] + " …"
    return f"{request}\n\nYour last answer was:\n{quoted}\n\nIt was wrong: {fault}. Answer again, with the JSON only."


def _parsed(completion: Completion, max_tokens: int, limit: str) -> Any:
    """The JSON in a reply; raises Fault, named `limit` when the reply was cut before its JSON was complete."""
    try:
        return find_json(completion.text)
    except Fault:
        if completion.stop != "length":
            raise
        raise Fault(f"it was cut after {max_tokens} tokens, before the JSON was complete; be shorter", limit) from None


def find_json(text: str) -> Any:
    """The JSON of a reply: the whole of it, else what stands in its last code fence, else what its outermost braces hold."""
    braces = text[text.find("{") : text.rfind("}") + 1] if "{" in text else ""
    failure: Exception | None = None
    for candidate in (text, *_FENCED.findall(text)[-1:], braces):
        try:
            return json.loads(candidate, strict=False)  # a line feed inside a string is what the author meant
        except (ValueError, RecursionError) as error:
            failure = error
    raise Fault(f"it is not valid JSON ({failure})" if braces else "it holds no complete JSON object", "bad_json")


def _times(number: int) -> str:
    return "1 try" if number == 1 else f"{number} tries"
