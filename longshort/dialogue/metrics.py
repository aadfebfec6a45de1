"""Numbers about a set of episodes (tokens, cost, turns, hand-backs, format), for training logs and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from longshort.dialogue.turns import STOPS, TurnProtocol
from longshort.types import Episode, Group


def episode_metrics(
    episodes: Sequence[Episode], protocol: TurnProtocol, prices: Mapping[str, float]
) -> dict[str, float]:
    """Return means over episodes.

    `tokens` (sampled, both roles), `cost` (price-weighted), `turns`, `hand_backs`, `hand_back_rate` (share of episodes
    with a hand-back), `format` (all roles well-formed), `tokens/<role>`, `format/<role>`, `stop/<name>`.
    """
    backs = [protocol.hand_backs(episode) for episode in episodes]
    formats = {role: [float(protocol.well_formed(episode, role)) for episode in episodes] for role in protocol.roles}
    metrics = {
        "tokens": fmean(sum(episode.tokens(role) for role in protocol.roles) for episode in episodes),
        "cost": fmean(episode.cost(prices) for episode in episodes),
        "turns": fmean(len(episode.turns) for episode in episodes),
        "hand_backs": fmean(backs),
        "hand_back_rate": fmean(count > 0 for count in backs),
        "format": fmean(min(values) for values in zip(*formats.values(), strict=True)),
    }
    metrics |= {f"tokens/{role}": fmean(episode.tokens(role) for episode in episodes) for role in protocol.roles}
    metrics |= {f"format/{role}": fmean(values) for role, values in formats.items()}
    return metrics | {f"stop/{name}": fmean(episode.stop == name for episode in episodes) for name in STOPS}


def group_metrics(groups: Sequence[Group], protocol: TurnProtocol, prices: Mapping[str, float]) -> dict[str, float]:
    """Return the `team/…` metrics of a training step, and the mean of every reward term under `reward/…`."""
    episodes = [episode for group in groups for episode in group.episodes]
    rewards = [reward for group in groups for reward in group.rewards]
    metrics = {f"team/{name}": value for name, value in episode_metrics(episodes, protocol, prices).items()}
    metrics["team/reward"] = fmean(fmean(reward.totals.values()) for reward in rewards)
    metrics |= {f"team/reward/{role}": fmean(reward.totals[role] for reward in rewards) for role in rewards[0].totals}
    for term in rewards[0].terms:
        name = "team/accuracy" if term == "correct" else f"reward/{term}"
        metrics[name] = fmean(reward.terms[term] for reward in rewards)
    return metrics
