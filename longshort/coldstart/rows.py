"""Training rows: a dialogue as each role saw it, in that role's own tokens, rendered by the code that renders rollouts.

One row per dialogue and role holds all its messages. The role learns what it wrote, its closing tags (`</think>`,
`</rethink>`, `</answer>`) included, and not the prompt or the partner's text. The paper makes one row per message: the
same loss, in more passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longshort.coldstart.records import Refused, RoleRow
from longshort.dialogue.protocols import demonstration, make_protocol
from longshort.dialogue.turns import TurnProtocol
from longshort.learning.samples import sample_of
from longshort.recipe.schema import LongShortConfig
from longshort.types import ROLES, SHORT, Problem, Sample


@dataclass(frozen=True, slots=True)
class Renderer:
    """Renders dialogues as the recipe's rollouts would: its protocol, tokenizers, contexts and limits."""

    config: LongShortConfig
    tokenizers: Mapping[str, Any]

    def protocol(self, max_exchanges: int) -> TurnProtocol:
        """Return the recipe's protocol with this number of exchanges."""
        section = self.config.protocol.model_copy(update={"max_exchanges": max_exchanges})
        return make_protocol(self.config.model_copy(update={"protocol": section}))

    def rows(
        self, problem: Problem, dialogue: Sequence[tuple[str, str, str]], out_of_exchanges: bool
    ) -> dict[str, Sample]:
        """Return the Sample of each role. `out_of_exchanges` puts the final notice before the last turn, as if no
        exchange were left.

        Raises Refused, by the name of the limit, when a turn, the episode, a context or `max_length` is too small for
        the dialogue.
        """
        exchanges, limit = sum(role == SHORT for role, _, _ in dialogue), self.config.protocol.max_exchanges
        if exchanges > limit:
            raise Refused("max_turns", f"{exchanges} exchanges, protocol.max_exchanges is {limit}")
        protocol = self.protocol(exchanges if out_of_exchanges else limit)
        episode = demonstration(problem, dialogue, protocol, self.tokenizers)
        for index, turn in enumerate(episode.turns):
            context, written = self.config.role(turn.role).engine.max_model_len, len(turn.completion.token_ids)
            allowed, name = protocol.budget(episode.turns[:index], turn.role, len(turn.prompt_ids), context)
            if written > allowed:
                raise Refused(name, f"message {index + 1} has {written} tokens, {allowed} are left ({name})")
        if episode.stop != "answered" or not all(protocol.well_formed(episode, role) for role in ROLES):
            raise Refused("malformed", f"the dialogue ends as {episode.stop!r} or holds a role tag")
        samples: dict[str, Sample] = {}
        for role in ROLES:
            sample, longest = sample_of(episode, role, 0.0), self.config.role(role).sft.max_length
            if sample is None:
                raise Refused("malformed", f"{role} writes nothing in this dialogue")
            if len(sample.token_ids) > longest:
                raise Refused(
                    "max_length", f"{role}: {len(sample.token_ids):,} tokens, {role}.sft.max_length is {longest:,}"
                )
            samples[role] = sample
        return samples


def role_row(sample: Sample) -> RoleRow:
    """Return a sample as it is written to the rows' file."""
    return RoleRow(token_ids=sample.token_ids, learned=tuple(spans(sample.mask)))


def spans(mask: Iterable[int]) -> list[tuple[int, int]]:
    """Return where the ones of a mask are: [start, stop) of each run. (0, 1, 1, 0, 1) -> [(1, 3), (4, 5)]"""
    runs: list[tuple[int, int]] = []
    for index, bit in enumerate(mask):
        if bit and runs and runs[-1][1] == index:
            runs[-1] = (runs[-1][0], index + 1)
        elif bit:
            runs.append((index, index + 1))
    return runs
