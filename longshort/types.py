"""The records that travel through the system, in the order in which they are made.

    Problem -> Completion -> Turn -> Episode -> Reward -> Group -> Sample -> Batch

Every record is frozen and complete when it is made: a later stage makes the next type, it never fills in a field.
This module imports nothing else of longshort, so every room may import it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LONG, SHORT = "long", "short"
ROLES = (LONG, SHORT)


class LongShortError(Exception):
    """An error that a person can act on: what, where, both values, the remedy. Printed without a traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A question with a verifiable answer.

    Problem(id="math-7", question="Last digit of 7^6+4?", answer="3")
    """

    id: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one turn is sampled. `temperature` 0 is greedy; `top_k` 0 is off; `stop` holds the strings that end the turn.

    The first `len(stop_token_ids)` entries of `stop` are single tokens with these ids; the others are matched as text.

    Sampling(max_tokens=24, stop=("</think>",), temperature=1.0, top_p=1.0, top_k=0, seed=17, stop_token_ids=())
    """

    max_tokens: int
    stop: tuple[str, ...]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    adapter: str = ""
    """The role whose LoRA adapter writes the turn, in an engine that several roles share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine sampled in one turn.

    `token_ids` are exactly the ids sampled, the closing tag's included; `logprobs` has one entry per id, with the
    temperature inside; `text` is the decoded turn cut before the closing tag; `stop` is that tag, or "eos", "length",
    "abort"; `version` is the number of weight updates when the turn began; `updates` holds, for each update during
    the turn, how many tokens were written before it.

    Completion(token_ids=(31, 9, 4), logprobs=(-0.1, -0.7, -0.0), text="9 ok.", stop="</think>", version=12,
    updates=(2,)) -> versions (12, 12, 13)
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    stop: str
    version: int
    updates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.logprobs):
            raise ValueError(f"a completion has {len(self.token_ids)} token ids but {len(self.logprobs)} log-probs")

    @property
    def versions(self) -> tuple[int, ...]:
        """Return the version of the weights that wrote each token."""
        return tuple(
            self.version + sum(position >= update for update in self.updates) for position in range(len(self.token_ids))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message: the role that was sampled, its prompt in its own token ids, and the completion."""

    role: str
    prompt_ids: tuple[int, ...]
    completion: Completion


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One dialogue on one problem. A role's training data is the view `turn.role == role`.

    `stop` is one of `answered | max_turns | turn_length | episode_length | context | malformed`.
    """

    problem: Problem
    turns: tuple[Turn, ...]
    stop: str

    def tokens(self, role: str) -> int:
        """Count the tokens that `role` sampled."""
        return sum(len(turn.completion.token_ids) for turn in self.turns if turn.role == role)

    def cost(self, prices: Mapping[str, float]) -> float:
        """Return the price-weighted number of sampled tokens: the length that the reward sees."""
        return sum(len(turn.completion.token_ids) * prices[turn.role] for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """What one episode earned: a total per role, and every term of it, for the log.

    Reward(totals={"long": 1.4, "short": 1.9}, terms={"correct": 1.0, "format/long": 0.0, "format/short": 1.0,
    "length": -0.1})
    """

    totals: Mapping[str, float]
    terms: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The scored episodes of one problem: the unit over which advantages are normalised."""

    problem: Problem
    episodes: tuple[Episode, ...]
    rewards: tuple[Reward, ...]

    def __post_init__(self) -> None:
        if len(self.episodes) != len(self.rewards):
            raise ValueError(f"group {self.problem.id}: {len(self.episodes)} episodes but {len(self.rewards)} rewards")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One training sequence: one role's view of one episode. Four aligned sequences.

    `mask` is 1 on the ids this role sampled and 0 on the prompt and on the partner's text; `logprobs` (the engine's)
    and `advantages` are 0 where `mask` is 0. `version` is that of the oldest weights that wrote any of it.

    Sample(role="long", token_ids=(5, 6, 31, 9), mask=(0, 0, 1, 1), logprobs=(0.0, 0.0, -0.1, -0.7), advantages=(0.0,
    0.0, 0.5, 0.5))
    """

    role: str
    token_ids: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    version: int = 0

    def __post_init__(self) -> None:
        lengths = {len(self.token_ids), len(self.mask), len(self.logprobs), len(self.advantages)}
        if len(lengths) != 1:
            raise ValueError(f"a sample's four sequences must be aligned, got lengths {sorted(lengths)}")
        if self.mask and self.mask[0]:
            raise ValueError("a sample must begin with a prompt: its first id has no context to be predicted from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Several samples of one role packed into rows for one forward pass.

    `input_ids`, `position_ids`, `sequence`: int64 [B, T]; `mask`: bool [B, T]; `logprobs`, `advantages`, `weights`:
    float32 [B, T]. Positions restart at 0 with each sample, which is how attention knows where one ends; `sequence`
    numbers the samples of the *whole step* (-1 on padding); `weights` carries the loss's denominator, so that summing
    over any split of the step gives its loss.
    """

    role: str
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    sequence: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor
    advantages: torch.Tensor
    weights: torch.Tensor
