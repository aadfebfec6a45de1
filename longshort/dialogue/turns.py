"""What a turn protocol is: the contract between a rollout and the rules of a dialogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from longshort.dialogue.encoding import RETHINK, ROLE_TAGS
from longshort.types import Episode, Problem, Turn

if TYPE_CHECKING:
    from longshort.recipe.schema import LongShortConfig

LENGTH_STOPS = ("turn_length", "episode_length", "context")
STOPS = ("answered", "max_turns", *LENGTH_STOPS, "malformed")


class TurnProtocol(Protocol):
    """Decides who speaks, what the speaker reads, and how a dialogue ends. Stateless: one object serves all episodes.

    Your own protocol needs these members and a line in `PROTOCOLS` (dialogue/protocols.py); docs/extending.md has one.
    """

    roles: Sequence[str]
    """The roles that speak: two for a pair, one for a single model."""
    tags: str
    """"text" or "special": whether role tags are plain text or single special tokens of both tokenizers."""

    @classmethod
    def of(cls, config: LongShortConfig) -> TurnProtocol:
        """Build the protocol from a recipe."""
        ...

    def instructions_of(self, role: str) -> str:
        """Return what the role reads before the problem."""
        ...

    def next(self, turns: Sequence[Turn]) -> str:
        """Return the role that speaks next, or the name of the reason to stop."""
        ...

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer: Any) -> tuple[int, ...]:
        """Return the speaker's prompt in its own token ids; it extends the speaker's previous prompt and completion."""
        ...

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        """Return (most tokens that this turn may have, name of the stop if they run out)."""
        ...

    def stops(self, speaker: str, tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return (strings that end the speaker's turn, their ids in the same order: empty unless `tags` is special)."""
        ...

    def close(self, speaker: str, text: str, stop: str, tokenizer: Any) -> tuple[int, ...]:
        """Return the ids of a scripted turn: its text, then the tag or token that ends it."""
        ...

    def well_formed(self, episode: Episode, role: str) -> bool:
        """Return whether the role kept to the format in every turn."""
        ...

    def final_text(self, episode: Episode) -> str:
        """Return the text to grade; empty when the episode was not answered."""
        ...

    def hand_backs(self, episode: Episode) -> int:
        """Count how often short asked long to think again."""
        ...


def tightest(*limits: tuple[int, str]) -> tuple[int, str]:
    """Return the limit with the fewest tokens, for `budget`; the first of equals."""
    return min(limits, key=lambda limit: limit[0])


def closed_well(turn: Turn, closing: Sequence[str]) -> bool:
    """Return whether the turn ended with one of these tags and has no role tag inside (a `<` in maths is fine)."""
    return turn.completion.stop in closing and not any(tag in turn.completion.text for tag in ROLE_TAGS)


def count_hand_backs(episode: Episode) -> int:
    """Count the turns in which short asked long to think again."""
    return sum(turn.completion.stop == RETHINK for turn in episode.turns)
