"""Asks a model for JSON, checks the answer, and feeds back what was wrong (arXiv 2505.11827, sections 3.1 and 3.3).

The published code asks again with the same prompt and keeps the last answer even when its check failed. Here every
fault is fed back, and an answer that was never right is an error with a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
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
    """What is wrong with an answer, in words that the model can act on; `reason` is its name in the counts."""

    def __init__(self, text: str, reason: str = "bad_answer"):
        super().__init__(text)
        self.reason = reason


class NoUsableAnswer(LongShortError):
    """Every try failed. `faults` are their texts in order; `reason` is the last one's: "bad_json", "bad_answer",
    "length", "context", or a check's own; `tries` counts the answers."""

    def __init__(self, faults: list[Fault], tries: int):
        self.reason, self.faults, self.tries = faults[-1].reason, tuple(map(str, faults)), tries
        listed = "; ".join(f"({number}) {fault}" for number, fault in enumerate(faults, 1))
        super().__init__(f"no usable answer after {tries} tr{'y' if tries == 1 else 'ies'} ({self.reason}): {listed}")


async def ask_json(
    engine: Engine,
    request: str,
    check: Callable[[Any], Awaitable[T]],
    *,
    tries: int,
    max_tokens: int,
    temperature: float,
    seed: int,
) -> tuple[T, int]:
    """Return what `check` makes of the first answer it accepts, and the number of answers. A check refuses by raising
    ValueError, best a Fault, whose text is fed back.

    Raises NoUsableAnswer after `tries` faults, and at once when the request leaves no room in the engine's context.
    """
    faults: list[Fault] = []
    prompt = encode_problem(engine.tokenizer, "", request)
    while len(faults) < tries:
        room = engine.context - len(prompt)
        if room < 1:
            text = f"the request has {len(prompt)} tokens, the engine's context {engine.context}"
            raise NoUsableAnswer([*faults, Fault(text, "context")], len(faults))
        sampling = Sampling(
            max_tokens=min(max_tokens, room),
            stop=(),
            temperature=max(temperature, RETRY_TEMPERATURE) if faults else temperature,
            seed=stable_seed(seed, "ask", len(faults)),
        )
        completion = await engine.generate(prompt, sampling)
        limit = "length" if max_tokens <= room else "context"
        try:
            return await check(_parsed(completion, sampling.max_tokens, limit)), len(faults) + 1
        except ValueError as error:
            faults.append(error if isinstance(error, Fault) else Fault(str(error)))
        # In one user message: some chat templates render only the first message, some drop earlier assistant turns.
        quoted = completion.text if len(completion.text) <= QUOTED else completion.text[:QUOTED] + " …"
        again = f"Your last answer was:\n{quoted}\n\nIt was wrong: {faults[-1]}. Answer again, with the JSON only."
        prompt = encode_problem(engine.tokenizer, "", f"{request}\n\n{again}")
    raise NoUsableAnswer(faults, len(faults))


def _parsed(completion: Completion, max_tokens: int, limit: str) -> Any:
    """Return the JSON in a reply; raise Fault, named `limit` when the reply was cut before its JSON was complete."""
    try:
        return find_json(completion.text)
    except Fault:
        if completion.stop != "length":
            raise
        raise Fault(f"it was cut after {max_tokens} tokens, before the JSON was complete; be shorter", limit) from None


def find_json(text: str) -> Any:
    """Return the JSON of a reply: the whole reply, else its last code fence, else what its outermost braces hold."""
    braces = text[text.find("{") : text.rfind("}") + 1] if "{" in text else ""
    failure: Exception | None = None
    for candidate in (text, *_FENCED.findall(text)[-1:], braces):
        try:
            return json.loads(candidate, strict=False)  # accepts line feeds inside strings
        except (ValueError, RecursionError) as error:
            failure = error
    raise Fault(f"it is not valid JSON ({failure})" if braces else "it holds no complete JSON object", "bad_json")
