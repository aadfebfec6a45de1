"""Turn protocols: who speaks next, what they see, and how a dialogue ends (Long⊗Short, arXiv 2505.11827, section 3.3).

A protocol never parses model text to decide anything: it knows who spoke, and the engine reports how a turn ended.
Role tags and names of special tokens inside a problem or a partner's message are data, encoded as plain text.

Rendering is append-only. A speaker's prompt is its previous prompt, the ids it sampled, exactly as sampled, and the
partner's text, encoded once with *this* speaker's tokenizer. So prefix caches hit on every turn, two models may have
different tokenizers, and one training sequence holds everything a role wrote in an episode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longshort.dialogue.encoding import (
    ANSWER,
    END_ANSWER,
    END_THINK,
    RETHINK,
    THINK,
    encode_opening,
    encode_plain,
    encode_problem,
    encode_tag,
    special_ids,
)
from longshort.dialogue.solo import Solo
from longshort.dialogue.turns import LENGTH_STOPS, TurnProtocol, closed_well, count_hand_backs, tightest
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.types import LONG, ROLES, SHORT, Completion, Episode, Problem, Turn

LONG_INSTRUCTIONS = (
    "You are the long thinker. Write the one next thought that matters most for solving the problem, in full detail, "
    "inside <think> </think>. Your partner does the rest."
)
SHORT_INSTRUCTIONS = (
    "You are the short thinker. Continue your partner's thoughts as briefly as you can inside <answer>. "
    "When the problem is solved, put the final answer in \\boxed{} and close with </answer>. "
    "When a hard step needs careful thought, close with </rethink> and your partner will think again."
)
FINAL_NOTICE = "\nThis is the last turn: finish with \\boxed{} and </answer>.\n"


class LongShort:
    """The paper's dialogue: long writes `<think>…</think>`, short `<answer>…</answer>`, or `…</rethink>` to hand back.

    The paper's loop can run forever; this one has at most `max_exchanges` think/answer pairs and token budgets per turn
    and per episode. On the last exchange the short model reads `final_notice`: it must finish. `tags` is "text" (stop
    strings) or "special" (each tag is one special token of both tokenizers).
    """

    roles: Sequence[str] = ROLES
    opening = {LONG: THINK, SHORT: ANSWER}
    closing = {LONG: (END_THINK,), SHORT: (END_ANSWER, RETHINK)}

    def __init__(
        self,
        *,
        max_exchanges: int = 4,
        turn_tokens: Mapping[str, int],
        episode_tokens: int,
        tags: str = "text",
        instructions: Mapping[str, str] | None = None,
        final_notice: str = FINAL_NOTICE,
    ):
        self.max_exchanges, self.tags = max_exchanges, tags
        self.turn_tokens, self.episode_tokens = dict(turn_tokens), episode_tokens
        self.instructions = {LONG: LONG_INSTRUCTIONS, SHORT: SHORT_INSTRUCTIONS} | dict(instructions or {})
        self.final_notice = final_notice

    @classmethod
    def of(cls, config: LongShortConfig) -> LongShort:
        """Build the protocol from a recipe: its section `protocol`, and each role's turn budget and instructions."""
        section = config.protocol
        instructions = {role: config.role(role).instructions for role in ROLES}
        return cls(
            max_exchanges=section.max_exchanges,
            turn_tokens={role: config.role(role).turn_tokens for role in ROLES},
            episode_tokens=section.episode_tokens,
            tags=section.tags,
            instructions={role: text for role, text in instructions.items() if text is not None},
            final_notice=FINAL_NOTICE if section.final_notice is None else section.final_notice,
        )

    def instructions_of(self, role: str) -> str:
        return self.instructions[role]

    def next(self, turns: Sequence[Turn]) -> str:
        if not turns:
            return LONG
        stop = turns[-1].completion.stop
        if stop == END_THINK:
            return SHORT
        if stop == END_ANSWER:
            return "answered"
        if stop == RETHINK:
            return LONG if len(turns) < 2 * self.max_exchanges else "max_turns"
        return stop if stop in LENGTH_STOPS else "malformed"

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer: Any) -> tuple[int, ...]:
        own = [i for i, turn in enumerate(turns) if turn.role == speaker]
        asked = tokenizer, self.instructions[speaker], problem.question
        if not turns:
            return encode_opening(*asked, self.opening[speaker], self.tags)
        if own:
            last = turns[own[-1]]
            prompt, unseen = last.prompt_ids + last.completion.token_ids, turns[own[-1] + 1 :]
        else:  # it reads the partner's turns first: what its template opened would stand around them
            prompt, unseen = encode_problem(*asked, opening=""), turns
        for turn in unseen:
            prompt += self._tag(tokenizer, self.opening[turn.role])
            prompt += encode_plain(tokenizer, turn.completion.text) + self._tag(tokenizer, turn.completion.stop)
        if speaker == SHORT and len(turns) == 2 * self.max_exchanges - 1:
            prompt += encode_plain(tokenizer, self.final_notice)
        return prompt + self._tag(tokenizer, self.opening[speaker])

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        used = sum(len(turn.completion.token_ids) for turn in turns)
        return tightest(
            (self.turn_tokens[speaker], "turn_length"),
            (self.episode_tokens - used, "episode_length"),
            (context - prompt_tokens, "context"),
        )

    def stops(self, speaker: str, tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        tags = self.closing[speaker]
        return tags, special_ids(tokenizer, tags) if self.tags == "special" else ()

    def close(self, speaker: str, text: str, stop: str, tokenizer: Any) -> tuple[int, ...]:
        return encode_plain(tokenizer, text) + self._tag(tokenizer, stop)

    def well_formed(self, episode: Episode, role: str) -> bool:
        return all(closed_well(turn, self.closing[role]) for turn in episode.turns if turn.role == role)

    def final_text(self, episode: Episode) -> str:
        return episode.turns[-1].completion.text if episode.stop == "answered" else ""

    def hand_backs(self, episode: Episode) -> int:
        return count_hand_backs(episode)

    def _tag(self, tokenizer, tag: str) -> tuple[int, ...]:
        return encode_tag(tokenizer, tag, self.tags)


class OneMessage(Solo):
    """A model of the pair alone: it writes one message between its role's tags, and that message is graded.

    Shows what a trained model is worth without its partner. `pair` is the protocol that it was trained in.
    """

    def __init__(self, *, role: str, turn_tokens: int, pair: LongShort):
        super().__init__(role=role, turn_tokens=turn_tokens, instructions=pair.instructions[role])
        self.opening, self.closing, self.tags = pair.opening[role], pair.closing[role], pair.tags

    def next(self, turns: Sequence[Turn]) -> str:
        return "answered" if turns and turns[-1].completion.stop in self.closing else super().next(turns)

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer: Any) -> tuple[int, ...]:
        return encode_opening(tokenizer, self.instructions, problem.question, self.opening, self.tags)

    def stops(self, speaker: str, tokenizer: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return self.closing, special_ids(tokenizer, self.closing) if self.tags == "special" else ()

    def well_formed(self, episode: Episode, role: str) -> bool:
        """As in the pair. (A message that ends with the end-of-text token is graded but not well-formed.)"""
        return all(closed_well(turn, self.closing) for turn in episode.turns)

    def hand_backs(self, episode: Episode) -> int:
        """1 if a short model asked for its absent partner; its message is graded all the same."""
        return count_hand_backs(episode)


PROTOCOLS: dict[str, type[TurnProtocol]] = {"long_short": LongShort, "solo": Solo}
"""What `protocol.name` may name."""


def make_protocol(config: LongShortConfig) -> TurnProtocol:
    """Build the recipe's turn protocol with its budgets and instructions; LongShortError for an unknown name."""
    return lookup(PROTOCOLS, config.protocol.name, "protocol.name").of(config)


def demonstration(
    problem: Problem, messages: Sequence[tuple[str, str, str]], protocol: TurnProtocol, tokenizers: Mapping[str, Any]
) -> Episode:
    """Return a scripted dialogue as an episode. The code of rollouts renders it, so SFT and RL prompts are identical.

    `messages` are (role, text, stop) in order; stop is the closing tag ("eos" for `solo`). Log-probs are 0: no engine
    sampled the text.
    """
    turns: list[Turn] = []
    for role, text, stop in messages:
        if (speaker := protocol.next(turns)) != role:
            raise ValueError(
                f"problem {problem.id}: message {len(turns)} is by {role!r} but the protocol expects {speaker!r}"
            )
        ids = protocol.close(role, text, stop, tokenizers[role])
        completion = Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, stop=stop, version=0)
        prompt = protocol.render(problem, turns, role, tokenizers[role])
        turns.append(Turn(role=role, prompt_ids=prompt, completion=completion))
    return Episode(problem=problem, turns=tuple(turns), stop=protocol.next(turns))
