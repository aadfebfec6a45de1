"""Where everything of a run lies. Every path of a run's folder is spelled here and nowhere else.

runs/<name>/run.lock                           while a run writes here (runs/lock.py)
            recipe.yaml  metrics.jsonl  summary.json  report.html
            episodes/step-000001.jsonl             every training episode, one file per step
            checkpoint-<step>/{long,short,state}   a sealed folder (runs/checkpoint.py)
            models/{base,cold}-<role>              what the stages base and coldstart made
            stages/<stage>.json                    which stages are done
            thoughts/<step>.jsonl  thoughts.html   the cold start's data
            replaced-<n>/                          what a new start has set aside
            mixture/  eval/<evaluation>.json  eval/<evaluation>/*.jsonl  team/
"""

from __future__ import annotations

import re
from pathlib import Path

from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError


class RunFolder:
    """The paths of one run. Nothing is created or checked."""

    def __init__(self, root: Path):
        self.root = root
        self.recipe = root / "recipe.yaml"
        self.metrics = root / "metrics.jsonl"
        self.summary = root / "summary.json"
        self.report = root / "report.html"
        self.tensorboard = root / "tensorboard"
        self.episodes = root / "episodes"
        self.evaluations = root / "eval"
        self.thoughts = root / "thoughts"
        self.mixture = root / "mixture"
        self.team = root / "team"

    @classmethod
    def of(cls, config: LongShortConfig) -> RunFolder:
        """Return the folder of the recipe's run."""
        return cls(Path(config.output_dir))

    def step_episodes(self, step: int) -> Path:
        return self.episodes / f"step-{step:06d}.jsonl"

    def stage(self, name: str) -> Path:
        return self.root / "stages" / f"{name}.json"

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def base(self, role: str) -> Path:
        """The model that the miniature's base training makes."""
        return self.model(f"base-{role}")

    def cold(self, role: str) -> Path:
        """The model that the cold start makes."""
        return self.model(f"cold-{role}")

    def checkpoint(self, step: int) -> Path:
        return self.root / f"checkpoint-{step}"

    def of_steps(self, after: int = 0) -> list[Path]:
        """Return what training steps later than `after` have left here, checkpoints included."""
        numbered = [*self.episodes.glob("step-*.jsonl"), *self.root.glob("checkpoint-*")]
        later = [
            path for path in numbered if (found := re.fullmatch(r"\D+-(\d+)", path.stem)) and int(found[1]) > after
        ]
        training = [self.evaluations / f"training{suffix}" for suffix in (".json", ".md", "")]
        whole = [] if after else [path for path in (self.metrics, self.tensorboard, *training) if path.exists()]
        return whole + sorted(later)


def base_model(config: LongShortConfig, role: str) -> str:
    """Return the model of a role before its cold start: the recipe's, or that of the miniature's base training.

    Empty if the recipe names none; LongShortError if the base training has not run yet.
    """
    model = config.role(role).model
    if model or not config.miniature:
        return model
    folder = RunFolder.of(config).base(role)
    if not (folder / "config.json").is_file():
        raise LongShortError(
            f"{role}.model is empty and {folder} is not there; run `longshort run` first (stage base), or name a model"
        )
    return str(folder)


def cold_model(config: LongShortConfig, role: str) -> str:
    """Return the model that the cold start made of a role; LongShortError if it has not run yet."""
    folder = RunFolder.of(config).cold(role)
    if not (folder / "config.json").is_file():
        raise LongShortError(
            f"the recipe has a cold start but {folder} is not there; run `longshort coldstart` with this recipe first"
        )
    return str(folder)
