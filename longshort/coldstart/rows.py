"""Training rows: a dialogue as each role saw it, in that role's own tokens, rendered by the code that renders rollouts.

One row per dialogue and role holds all its messages: `mask` is 1 on what the role wrote, its closing tag (`</think>`, `</rethink>`,
`</answer>`) included, and 0 on the prompt and the partner's text. The paper makes one row per message; the loss is the same, at the
cost of one pass over the dialogue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from longshort.dialogue.protocols import demonstration
from longshort.dialogue.turns import LENGTH_STOPS
from longshort.learning.samples import sample_of
from longshort.recipe.schema import LongShortConfig
from longshort.types import ROLES, SHORT, Problem, Sample


class Unfit(ValueError):
    """The dialogue could not have been sampled under this recipe. `outcome` is the limit's name, the message has both numbers."""

    def __init__(self, outcome: str, message: str):
        super().__init__(message)
        self.outcome = outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Renders dialogues as the recipe's rollouts would: its protocol, tokenizers, contexts and limits.

    `protocol(max_exchanges)` makes the protocol with that many exchanges; `context` and `max_length` are per role.
    """

    protocol: Callable[[int], object]
    max_exchanges: int
    tokenizers: Mapping[str, object]
    context: Mapping[str, int]
    max_length: Mapping[str, int]

    def rows(
        self, problem: Problem, dialogue: Sequence[tuple[str, str, str]], out_of_exchanges: bool
    ) -> dict[str, Sample]:
        """The Sample of each role. `out_of_exchanges` puts the final notice before the last turn, as if no exchange were left.

        Raises Unfit when a turn, the episode, a context or `max_length` is too small, or the dialogue is malformed.
        """
        exchanges = sum(role == SHORT for role, _, _ in dialogue)
        if exchanges > self.max_exchanges:
            raise Unfit("max_turns", f"{exchanges} exchanges, protocol.max_exchanges is {self.max_exchanges}")
        protocol = self.protocol(exchanges if out_of_exchanges else self.max_exchanges)
        episode = demonstration(problem, dialogue, protocol, self.tokenizers)
        for index, turn in enumerate(episode.turns):
            allowed, limit = protocol.budget(
                episode.turns[:index], turn.role, len(turn.prompt_ids), self.context[turn.role]
            )
            if len(turn.completion.token_ids) > allowed:
                raise Unfit(
                    limit,
                    f"message {index + 1} has {len(turn.completion.token_ids)} tokens, {allowed} are left ({limit})",
                )
        if episode.stop != "answered" or not all(protocol.well_formed(episode, role) for role in ROLES):
            raise Unfit("malformed", f"the dialogue ends as {episode.stop!r} or holds a role tag")
        samples = {role: sample_of(episode, role, 0.0) for role in ROLES}
        for role, sample in samples.items():
            if len(sample.token_ids) > self.max_length[role]:
                raise Unfit(
                    "max_length",
                    f"{role}: {len(sample.token_ids):,} tokens, {role}.sft.max_length is {self.max_length[role]:,}",
                )
        return samples


def renderer(config: LongShortConfig, tokenizers: Mapping[str, object]) -> Renderer:
    """The recipe's Renderer."""
    from longshort.dialogue.protocols import make_protocol

    def protocol(max_exchanges: int):
        section = config.protocol.model_copy(update={"max_exchanges": max_exchanges})
        return make_protocol(config.model_copy(update={"protocol": section}))

    return Renderer(
        protocol=protocol,
        max_exchanges=config.protocol.max_exchanges,
        tokenizers=tokenizers,
        context={role: config.role(role).engine.max_model_len for role in ROLES},
        max_length={role: config.role(role).sft.max_length for role in ROLES},
    )


LIMITS = (*LENGTH_STOPS, "max_turns", "malformed", "max_length")
"""Every outcome of an Unfit dialogue."""
