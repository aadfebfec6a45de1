"""Protocols in which one model answers alone: the baselines and controls of every table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from longshort.dialogue.encoding import encode_plain, encode_problem
from longshort.dialogue.turns import LENGTH_STOPS, tightest
from longshort.recipe.sections import ALONE
from longshort.types import LONG, Episode, Problem, Turn

if TYPE_CHECKING:
    from longshort.recipe.schema import LongShortConfig


def alone(config: LongShortConfig, role: str) -> str:
    """Return what the role's model reads when it answers alone: where to put the answer.

    Nothing for a miniature model, which boxes anyway, nor where the recipe sends its role the problem alone (`""`).
    """
    section = config.role(role)
    return "" if section.instructions == "" or (config.miniature and not section.model) else ALONE


class Solo:
    """One model answers alone, in one turn that ends with its end-of-text token."""

    tags = "text"  # it writes no tags, so its tokenizer need not have them

    def __init__(self, *, role: str = LONG, turn_tokens: int, instructions: str = ""):
        self.role = role
        self.roles: Sequence[str] = (role,)
        self.turn_tokens, self.instructions = turn_tokens, instructions

    @classmethod
    def of(cls, config: LongShortConfig) -> Solo:
        """Build the protocol from a recipe: the long model alone, with its turn budget and its instructions."""
        return cls(turn_tokens=config.long.turn_tokens, instructions=config.long.instructions or alone(config, LONG))

    def instructions_of(self, role: str) -> str:
        return self.instructions

    def next(self, turns: Sequence[Turn]) -> str:
        if not turns:
            return self.role
        stop = turns[-1].completion.stop
        return "answered" if stop == "eos" else stop if stop in LENGTH_STOPS else "malformed"

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer: Any) -> tuple[int, ...]:
        return encode_problem(tokenizer, self.instructions, problem.question)

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        return tightest((self.turn_tokens, "turn_length"), (context - prompt_tokens, "context"))

    def stops(self, speaker: str, tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return (), ()

    def close(self, speaker: str, text: str, stop: str, tokenizer: Any) -> tuple[int, ...]:
        return encode_plain(tokenizer, text) + (tokenizer.eos_token_id,)

    def well_formed(self, episode: Episode, role: str) -> bool:
        return episode.stop == "answered"

    def final_text(self, episode: Episode) -> str:
        return episode.turns[-1].completion.text if episode.stop == "answered" else ""

    def hand_backs(self, episode: Episode) -> int:
        return 0


class StoppedEarly(Solo):
    """A chain of thought that is cut after `thoughts` thoughts and made to answer: shows what the remainder is worth.

    Each thought is one turn; it ends with `separator` and may be empty. After the last one the model reads `ending`,
    which opens the answer's box, and continues up to the next separator. A model that ends by itself before that is
    not interrupted. `turn_tokens` is the budget of all turns together.
    """

    def __init__(
        self, *, role: str = LONG, thoughts: int, turn_tokens: int, instructions: str = "", separator: str, ending: str
    ):
        super().__init__(role=role, turn_tokens=turn_tokens, instructions=instructions)
        self.thoughts, self.separator, self.ending = thoughts, separator, ending

    def next(self, turns: Sequence[Turn]) -> str:
        if turns and turns[-1].completion.stop == self.separator:
            return self.role if len(turns) <= self.thoughts else "answered"
        return super().next(turns)

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer: Any) -> tuple[int, ...]:
        if not turns:
            return super().render(problem, turns, speaker, tokenizer)
        written = turns[-1].prompt_ids + turns[-1].completion.token_ids
        return written + encode_plain(tokenizer, self.ending) if len(turns) == self.thoughts else written

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        used = sum(len(turn.completion.token_ids) for turn in turns)
        return tightest((self.turn_tokens - used, "turn_length"), (context - prompt_tokens, "context"))

    def stops(self, speaker: str, tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return (self.separator,), ()

    def final_text(self, episode: Episode) -> str:
        """Return the forced answer with its opened box; everything the model wrote if it ended by itself."""
        texts = [turn.completion.text for turn in episode.turns]
        if episode.stop != "answered":
            return ""
        return self.ending + texts[-1] if len(texts) > self.thoughts else self.separator.join(texts)
