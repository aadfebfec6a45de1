"""Runs of the trainer class on tiny models, with a reward that always varies; and what such a run has written."""

import json
from pathlib import Path

from longshort import LongShortTrainer
from longshort.types import LONG, SHORT, Reward
from tests.support import tiny_models


def even_tokens(problem, episodes, progress):
    """A reward that varies between any two dialogues: the share of even token ids."""
    ids = [[token for turn in episode.turns for token in turn.completion.token_ids] for episode in episodes]
    shares = [sum(token % 2 == 0 for token in row) / len(row) for row in ids]
    return [Reward(totals={LONG: share, SHORT: share}, terms={"correct": 0.0}) for share in shares]


def trainer(tmp_path, models, reward=even_tokens, **changes):
    roles = {role: tiny_models.role(models[role], backend="transformers") for role in (LONG, SHORT)}
    return LongShortTrainer(args=tiny_models.config(tmp_path, models, **roles | changes), reward=reward)


def episodes(run):
    """The lines of each step."""
    return [
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((run.output_dir / "episodes").iterdir())
    ]


def metrics(run):
    """The lines of the run's metrics file."""
    return [json.loads(line) for line in (Path(run.output_dir) / "metrics.jsonl").read_text().splitlines()]
