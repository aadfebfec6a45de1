"""Turn protocols: who speaks next, what they see, and how a dialogue ends (METHOD: Long⊗Short, arXiv 2505.11827, section 3.3).

A protocol never parses model text to decide anything. Who spoke is who was sampled, how a turn ended is what the engine reports.
Role tags and special-token strings inside a problem or inside a partner's message are data: they are encoded as plain text.

Rendering is append-only. A speaker's prompt is its previous prompt, followed by the ids it sampled exactly as sampled, followed by
the partner's text encoded once with *this* speaker's tokenizer. So prefix caches hit on every turn, two models may have two different
tokenizers, and one training sequence holds everything a role wrote in an episode.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from longshort.types import LONG, ROLES, SHORT, Completion, Episode, LongShortError, Problem, Turn

THINK, END_THINK, ANSWER, END_ANSWER, RETHINK = "<think>", "</think>", "<answer>", "</answer>", "</rethink>"
ROLE_TAGS = (THINK, END_THINK, ANSWER, END_ANSWER, RETHINK)
LENGTH_STOPS = ("turn_length", "episode_length", "context")
STOPS = ("answered", "max_turns", *LENGTH_STOPS, "malformed")

LONG_INSTRUCTIONS = (
    "You are the long thinker. Write the one next thought that matters most for solving the problem, in full detail, "
    "inside <think> </think>. Your partner does the rest."
)
SHORT_INSTRUCTIONS = (
    "You are the short thinker. Continue your partner's thoughts as briefly as you can inside <answer>. When the problem is solved, "
    "put the final answer in \\boxed{} and close with </answer>. When a hard step needs careful thought, close with </rethink> and "
    "your partner will think again."
)
FINAL_NOTICE = "\nThis is the last turn: finish with \\boxed{} and </answer>.\n"


def encode_plain(tokenizer, text: str) -> tuple[int, ...]:
    """Encode `text` as data: a special-token string in it becomes ordinary characters, never control."""
    return tuple(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)) if text else ()


def encode_problem(tokenizer, instructions: str, question: str) -> tuple[int, ...]:
    """The prompt before the first turn: the chat template's own tokens as control, the instructions and the question as data."""
    content = f"{instructions}\n\n{question}" if instructions else question
    before, after = _frame(tokenizer, str(tokenizer.chat_template))
    return before + encode_plain(tokenizer, content) + after


@functools.lru_cache(maxsize=16)
def _frame(tokenizer, template: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after every question. Kept, since rendering a template takes longer than encoding a short question."""
    if not tokenizer.chat_template:
        return (() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)), ()
    slot = "QUESTIONxSLOT"
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": slot}], add_generation_prompt=True, tokenize=False)
    before, found, after = rendered.partition(slot)
    if not found or slot in after:
        raise LongShortError(f"the chat template of {tokenizer.name_or_path!r} must contain the user's message exactly once")
    encode_control = lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)) if text else ()  # noqa: E731
    return encode_control(before), encode_control(after)


def special_ids(tokenizer, tags: Sequence[str]) -> Mapping[str, int]:
    """The single id of each role tag, for `tags: special`; raises LongShortError naming the tags this tokenizer lacks."""
    return _special_ids(tokenizer, tuple(tags))


@functools.lru_cache(maxsize=64)
def _special_ids(tokenizer, tags: tuple[str, ...]) -> Mapping[str, int]:
    vocabulary = tokenizer.get_added_vocab()  # which takes longer than all else in a turn
    missing = [tag for tag in tags if tag not in vocabulary]
    if missing:
        raise LongShortError(
            f"protocol.tags is 'special' but the tokenizer of {tokenizer.name_or_path!r} has no special token for {', '.join(missing)}; "
            "add them (tokenizer.add_special_tokens, then resize the embeddings) or set protocol.tags: text"
        )
    return MappingProxyType({tag: vocabulary[tag] for tag in tags})


def encode_tag(tokenizer, tag: str, tags: str) -> tuple[int, ...]:
    """A role tag in the tokenizer's ids, as `protocol.tags` says: one special token, or plain text."""
    return (special_ids(tokenizer, (tag,))[tag],) if tags == "special" else encode_plain(tokenizer, tag)


def _closed_well(turn: Turn, closing: Sequence[str]) -> bool:
    return turn.completion.stop in closing and not any(tag in turn.completion.text for tag in ROLE_TAGS)


def _hand_backs(episode: Episode) -> int:
    return sum(turn.completion.stop == RETHINK for turn in episode.turns)


class LongShort:
    """The paper's dialogue: long writes `<think>…</think>`, short `<answer>…` up to `</answer>`, or `</rethink>` to hand back.

    Ours: at most `max_exchanges` think/answer pairs (the paper's loop can run forever), per-turn and whole-episode token budgets, and on
    the last exchange the short model reads `final_notice`, which tells it that it must finish. `tags` is "text" (stop strings) or
    "special" (each tag is one special token of both tokenizers).
    """

    roles = ROLES
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
        self.max_exchanges, self.turn_tokens, self.episode_tokens, self.tags = max_exchanges, dict(turn_tokens), episode_tokens, tags
        self.instructions = {LONG: LONG_INSTRUCTIONS, SHORT: SHORT_INSTRUCTIONS} | dict(instructions or {})
        self.final_notice = final_notice

    def next(self, turns: Sequence[Turn]) -> str:
        """The role that speaks next, or the name of the reason to stop."""
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

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer) -> tuple[int, ...]:
        """The speaker's prompt in its own token ids; extends its previous prompt and completion."""
        own = [i for i, turn in enumerate(turns) if turn.role == speaker]
        if own:
            last = turns[own[-1]]
            prompt, unseen = last.prompt_ids + last.completion.token_ids, turns[own[-1] + 1 :]
        else:
            prompt, unseen = encode_problem(tokenizer, self.instructions[speaker], problem.question), turns
        for turn in unseen:
            prompt += self._tag(tokenizer, self.opening[turn.role])
            prompt += encode_plain(tokenizer, turn.completion.text) + self._tag(tokenizer, turn.completion.stop)
        if speaker == SHORT and len(turns) == 2 * self.max_exchanges - 1:
            prompt += encode_plain(tokenizer, self.final_notice)
        return prompt + self._tag(tokenizer, self.opening[speaker])

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        """How many tokens this turn may have, and the name of the stop if they run out."""
        used = sum(len(turn.completion.token_ids) for turn in turns)
        limits = (
            (self.turn_tokens[speaker], "turn_length"),
            (self.episode_tokens - used, "episode_length"),
            (context - prompt_tokens, "context"),
        )
        return min(limits, key=lambda limit: limit[0])

    def stops(self, speaker: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The tags that end the speaker's turn and, where tags are special tokens, their ids in the same order (else empty)."""
        tags = self.closing[speaker]
        return tags, tuple(special_ids(tokenizer, tags).values()) if self.tags == "special" else ()

    def close(self, speaker: str, text: str, stop: str, tokenizer) -> tuple[int, ...]:
        """The ids of a scripted turn of `speaker`: its text, then its closing tag (used for demonstrations)."""
        return encode_plain(tokenizer, text) + self._tag(tokenizer, stop)

    def well_formed(self, episode: Episode, role: str) -> bool:
        """Whether each of the role's turns closed with one of its tags and holds no role tag inside (a `<` in maths is fine)."""
        return all(_closed_well(turn, self.closing[role]) for turn in episode.turns if turn.role == role)

    def final_text(self, episode: Episode) -> str:
        """The text that is graded: the last `</answer>` turn, or nothing when the episode was not answered."""
        return episode.turns[-1].completion.text if episode.stop == "answered" else ""

    def hand_backs(self, episode: Episode) -> int:
        """How often short asked long to think again."""
        return _hand_backs(episode)

    def _tag(self, tokenizer, tag: str) -> tuple[int, ...]:
        return encode_tag(tokenizer, tag, self.tags)


class Solo:
    """One model answers alone in one turn that ends with its end-of-text token: the baseline, and the control of every table."""

    tags = "text"  # none are written, so no tokenizer need have them

    def __init__(self, *, role: str = LONG, turn_tokens: int, instructions: str = ""):
        self.role, self.roles = role, (role,)
        self.turn_tokens, self.instructions = turn_tokens, instructions

    def next(self, turns: Sequence[Turn]) -> str:
        if not turns:
            return self.role
        stop = turns[-1].completion.stop
        return "answered" if stop == "eos" else stop if stop in LENGTH_STOPS else "malformed"

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer) -> tuple[int, ...]:
        return encode_problem(tokenizer, self.instructions, problem.question)

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        return min((self.turn_tokens, "turn_length"), (context - prompt_tokens, "context"), key=lambda limit: limit[0])

    def stops(self, speaker: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return (), ()

    def close(self, speaker: str, text: str, stop: str, tokenizer) -> tuple[int, ...]:
        return encode_plain(tokenizer, text) + (tokenizer.eos_token_id,)

    def well_formed(self, episode: Episode, role: str) -> bool:
        return episode.stop == "answered"

    def final_text(self, episode: Episode) -> str:
        return episode.turns[-1].completion.text if episode.stop == "answered" else ""

    def hand_backs(self, episode: Episode) -> int:
        return 0


class OneMessage(Solo):
    """A model of the pair alone: one message of its role, between its role's tags, is all there is, and what stands in it is graded.

    The control that asks what a trained model is worth without its partner. `pair` is the protocol that it was trained in.
    """

    def __init__(self, *, role: str, turn_tokens: int, pair: LongShort):
        super().__init__(role=role, turn_tokens=turn_tokens, instructions=pair.instructions[role])
        self.opening, self.closing, self.tags = pair.opening[role], pair.closing[role], pair.tags

    def next(self, turns: Sequence[Turn]) -> str:
        return "answered" if turns and turns[-1].completion.stop in self.closing else super().next(turns)

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer) -> tuple[int, ...]:
        return super().render(problem, turns, speaker, tokenizer) + encode_tag(tokenizer, self.opening, self.tags)

    def stops(self, speaker: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return self.closing, tuple(special_ids(tokenizer, self.closing).values()) if self.tags == "special" else ()

    def well_formed(self, episode: Episode, role: str) -> bool:
        """As in the pair: closed with a tag of the role, and no tag inside. Ended with the end-of-text token it is graded, yet not this."""
        return all(_closed_well(turn, self.closing) for turn in episode.turns)

    def hand_backs(self, episode: Episode) -> int:
        """1 where a short model asked for its partner, who is not there: its message is graded as it stands."""
        return _hand_backs(episode)


class StoppedEarly(Solo):
    """A long chain of thought cut after `thoughts` thoughts and made to answer: a control that asks what the rest of it was worth.

    A thought ends with `separator`, and each is one turn of this protocol, an empty one too. After the last one allowed the model reads
    `ending`, which opens the answer's box, and goes on from there, up to another separator; a model that has ended by itself before is left
    alone. `turn_tokens` is for all turns together.
    """

    def __init__(self, *, role: str = LONG, thoughts: int, turn_tokens: int, instructions: str = "", separator: str, ending: str):
        super().__init__(role=role, turn_tokens=turn_tokens, instructions=instructions)
        self.thoughts, self.separator, self.ending = thoughts, separator, ending

    def next(self, turns: Sequence[Turn]) -> str:
        if turns and turns[-1].completion.stop == self.separator:
            return self.role if len(turns) <= self.thoughts else "answered"
        return super().next(turns)

    def render(self, problem: Problem, turns: Sequence[Turn], speaker: str, tokenizer) -> tuple[int, ...]:
        if not turns:
            return super().render(problem, turns, speaker, tokenizer)
        written = turns[-1].prompt_ids + turns[-1].completion.token_ids
        return written + encode_plain(tokenizer, self.ending) if len(turns) == self.thoughts else written

    def budget(self, turns: Sequence[Turn], speaker: str, prompt_tokens: int, context: int) -> tuple[int, str]:
        used = sum(len(turn.completion.token_ids) for turn in turns)
        return min((self.turn_tokens - used, "turn_length"), (context - prompt_tokens, "context"), key=lambda limit: limit[0])

    def stops(self, speaker: str, tokenizer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        return (self.separator,), ()

    def final_text(self, episode: Episode) -> str:
        """The forced answer with the box that was opened for it; of a model that ended by itself, all it wrote."""
        texts = [turn.completion.text for turn in episode.turns]
        if episode.stop != "answered":
            return ""
        return self.ending + texts[-1] if len(texts) > self.thoughts else self.separator.join(texts)


PROTOCOLS = {"long_short": LongShort, "solo": Solo}


def demonstration(problem: Problem, messages: Sequence[tuple[str, str, str]], protocol, tokenizers: Mapping[str, object]) -> Episode:
    """A scripted dialogue as an episode, rendered by the very code that renders rollouts, so that SFT and RL prompts are byte-identical.

    `messages` are (role, text, stop) in order, stop being the closing tag ("eos" for `solo`). Log-probs are 0: nobody sampled it.
    """
    turns: list[Turn] = []
    for role, text, stop in messages:
        if (speaker := protocol.next(turns)) != role:
            raise ValueError(f"problem {problem.id}: message {len(turns)} is by {role!r} but the protocol expects {speaker!r}")
        ids = protocol.close(role, text, stop, tokenizers[role])
        completion = Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, stop=stop, version=0)
        prompt = protocol.render(problem, turns, role, tokenizers[role])
        turns.append(Turn(role=role, prompt_ids=prompt, completion=completion))
    return Episode(problem=problem, turns=tuple(turns), stop=protocol.next(turns))
