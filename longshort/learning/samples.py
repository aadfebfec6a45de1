"""From episodes to training sequences: one sequence per (episode, role), the role's tokens exactly as sampled.

Rendering is append-only (dialogue/protocols.py), so the prompt of a role's last turn holds everything that it read and
wrote before. That prompt plus the last completion is the whole sequence: one forward pass over T tokens, not T².
"""

from __future__ import annotations

from longshort.types import Episode, Sample


def sample_of(episode: Episode, role: str, advantage: float) -> Sample | None:
    """Return one role's view of an episode: mask 1 on each id that it sampled, 0 on the prompt and the partner's text.

    None if the role sampled nothing. Raises ValueError if a turn's prompt does not begin with what the role read and
    wrote before.

        long samples (31, 9) after (5, 6), then (4,) after (5, 6, 31, 9, 7, 7)
        -> token_ids (5, 6, 31, 9, 7, 7, 4), mask (0, 0, 1, 1, 0, 0, 1)
    """
    turns = [turn for turn in episode.turns if turn.role == role]
    if not any(turn.completion.token_ids for turn in turns):
        return None
    token_ids = turns[-1].prompt_ids + turns[-1].completion.token_ids
    mask, logprobs, advantages = [0] * len(token_ids), [0.0] * len(token_ids), [0.0] * len(token_ids)
    for number, turn in enumerate(turns):
        start, end = len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.completion.token_ids)
        if token_ids[:end] != turn.prompt_ids + turn.completion.token_ids:
            raise ValueError(
                f"episode on problem {episode.problem.id}: the last prompt of {role!r} does not begin with the {end} "
                f"ids of its turn {number} as sampled; rendering must be append-only (dialogue/protocols.py)"
            )
        mask[start:end] = [1] * (end - start)
        logprobs[start:end] = turn.completion.logprobs
        advantages[start:end] = [advantage] * (end - start)
    return Sample(
        role=role,
        token_ids=token_ids,
        mask=tuple(mask),
        logprobs=tuple(logprobs),
        advantages=tuple(advantages),
        version=min(turn.completion.version for turn in turns if turn.completion.token_ids),
    )
