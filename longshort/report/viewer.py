"""The episodes that a report embeds: an index to search and filter, and every dialogue with its tokens.

Each episode is a JSON element of its own, which the page's script parses when the episode is opened.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from longshort.evaluation.records import GradedLine, graded_files
from longshort.report.page import embed
from longshort.report.reading import parse_record, read_lines
from longshort.report.run_files import RunFiles
from longshort.report.token_texts import TokenTexts
from longshort.runs.episodes import EpisodeLine, TrainingLine


class EpisodeFile(NamedTuple):
    """A file of episodes: a training step's, or an evaluation of one system on one benchmark.

    `title` is what a reader filters by; `models` are the folders of the models that played in an evaluation, by role.
    """

    run: RunFiles
    path: Path
    title: str
    shape: type[TrainingLine] | type[GradedLine]
    models: Mapping[str, str]

    @property
    def where(self) -> str:
        return f"{self.run.name}/{self.path.relative_to(self.run.folder.root)}"

    def lines(self) -> int:
        """Return the number of lines."""
        with self.path.open("rb") as stream:
            return sum(1 for _ in stream)


@dataclass(slots=True, kw_only=True)
class Viewer:
    """What the page's viewer shows: `index` has an entry per item, `total` counts the lines that the runs have."""

    index: list[dict[str, Any]] = field(default_factory=list)
    items: list[Markup] = field(default_factory=list)
    total: int = 0
    without_tokens: int = 0


def collect(runs: Sequence[RunFiles], most: int, size_mb: float, remarks: list[str]) -> Viewer:
    """Return at most `most` episodes: evaluations first, then training from the newest step back.

    Every file gives about as many, from its beginning. Once the episodes take more than `size_mb` (10^6 bytes), later
    ones come without their tokens. Damaged lines are counted in `remarks`.
    """
    files = [file for run in runs for file in _evaluations(run, remarks)] + _training(runs)
    viewer, texts, room = Viewer(), TokenTexts(), size_mb * 1e6
    sizes = [file.lines() for file in files]
    viewer.total = sum(sizes)
    for file, share in zip(files, shares(sizes, most), strict=True):
        for number, line in read_lines(file.path, partial(parse_record, file.shape), file.where, remarks, share):
            item = _numbers(line) | {
                "where": f"{file.where}, line {number}",
                "question": line.problem.question,
                "answer": line.problem.answer,
                "turns": [[turn.role, turn.text, turn.stop, turn.version, len(turn.token_ids)] for turn in line.turns],
            }
            packed = embed(item | {"tokens": _tokens(file, line, texts)})
            if len(packed) > room:
                packed = embed(item)
                viewer.without_tokens += 1
            room -= len(packed)
            viewer.items.append(packed)
            viewer.index.append(_entry(file, line) | {"key": f"{file.where}:{number}"})
    if texts.unknown:
        remarks.append(f"{texts.unknown:,} turns show token ids, as no tokenizer of their run fits them.")
    return viewer


def _training(runs: Sequence[RunFiles]) -> list[EpisodeFile]:
    """Return the files of training, the newest step first."""
    files = [
        EpisodeFile(run, path, "training", TrainingLine, {})
        for run in runs
        for path in run.folder.episodes.glob("step-*.jsonl")
    ]
    return sorted(files, key=lambda file: file.path.name, reverse=True)


def _evaluations(run: RunFiles, remarks: list[str]) -> list[EpisodeFile]:
    """Return the files of every evaluation."""
    files = []
    for folder in sorted(path for path in run.folder.evaluations.glob("*") if path.is_dir()):
        graded, unknown = graded_files(folder)
        if unknown:
            where = f"{run.name}/eval/{folder.name}"
            remarks.append(f"{len(unknown)} files of {where} do not say what they hold; their episodes are left out.")
        systems = run.evaluations[folder.name].systems if folder.name in run.evaluations else {}
        for one in graded:
            title = " · ".join((folder.name, one.system, one.benchmark, one.decoding))
            models = systems[one.system].models if one.system in systems else {}
            files.append(EpisodeFile(run, one.path, title, GradedLine, models))
    return files


def shares(sizes: Sequence[int], most: int) -> list[int]:
    """Split `most` among files of these sizes: equal shares; what a small file leaves goes to the others."""
    taken = [0] * len(sizes)
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    for done, at in enumerate(smallest_first):
        taken[at] = min(sizes[at], math.ceil((most - sum(taken)) / (len(sizes) - done)))
    return taken


def _entry(file: EpisodeFile, line: TrainingLine | GradedLine) -> dict[str, Any]:
    """Return what the list shows and filters by."""
    entry = {
        "run": file.run.name,
        "source": file.title,
        "id": line.problem.id,
        "question": line.problem.question[:160],
        "stop": line.stop,
        "turns": len(line.turns),
        "tokens": sum(len(turn.token_ids) for turn in line.turns),
    }
    if isinstance(line, GradedLine):
        return entry | {"verdict": "right" if line.correct else "wrong"}
    correct, rewards = line.terms.get("correct"), [value for value in line.reward.values() if math.isfinite(value)]
    verdict = "not graded" if correct is None else "right" if correct > 0 else "wrong"
    reward = round(sum(rewards) / len(rewards), 4) if rewards else None
    return entry | {"verdict": verdict, "step": line.step, "reward": reward}


def _numbers(line: TrainingLine | GradedLine) -> dict[str, Any]:
    """Return the numbers of the whole episode, or the reason of its verdict."""
    if isinstance(line, GradedLine):
        return {"reason": line.reason}
    numbers = {"reward": line.reward, "advantage": line.advantages, "terms": line.terms}
    return {name: {key: _rounded(value) for key, value in values.items()} for name, values in numbers.items()}


def _tokens(file: EpisodeFile, line: EpisodeLine, texts: TokenTexts) -> list[list[list[Any]]]:
    """Return [texts, log-probs, gaps] of every turn; numbers are left out unless there is one per token."""
    gaps = {}
    for role, values in line.gaps.items() if isinstance(line, TrainingLine) else ():
        sampled = sum(len(turn.token_ids) for turn in line.turns if turn.role == role)
        gaps[role] = [_rounded(value) for value in values] if len(values) == sampled else []
    turns = []
    for turn in line.turns:
        size, of_role = len(turn.token_ids), gaps.get(turn.role, [])
        logprobs = [_rounded(value) for value in turn.logprobs] if len(turn.logprobs) == size else []
        turns.append([texts.of(file.run, file.models, turn), logprobs, of_role[:size]])
        gaps[turn.role] = of_role[size:]
    return turns


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None
