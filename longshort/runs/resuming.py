"""Where a training run begins: at a checkpoint of the same recipe, or at the beginning of an output folder without
steps."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longshort import console
from longshort.recipe.paths import expand
from longshort.recipe.schema import LongShortConfig
from longshort.recipe.strict_yaml import leaves
from longshort.runs import checkpoint
from longshort.runs.checkpoint import VerifiedCheckpoint
from longshort.runs.layout import RunFolder
from longshort.types import LongShortError

MAY_CHANGE = (
    r"output_dir|stages|save_\w+|eval\b.*|serve\..*|eval_steps|logging_steps|sample_steps|report_to|grading\b.*",
    r"max_engine_restarts|engine_timeout_s|max_skipped_steps|batch_tokens|(\w+\.)?learning_rate|learner\..*",
    r"share_engine|weight_sync|time_share",
    r"(long|short)\.(model|lora\.adapter|engine\..*)",
)
"""Settings that may differ between a checkpoint and the run that resumes it; any other change would train something
else. A model may have moved: the weights come from the checkpoint, and the engine is proven to hold them.
"""


def checkpoint_to_resume(config: LongShortConfig, resume: bool | str | Path) -> VerifiedCheckpoint | None:
    """Return the verified checkpoint to continue from, or None to start from the beginning.

    Raises LongShortError if it is damaged, foreign or of another recipe, and if a run would mix its files with an
    earlier one's.
    """
    run = RunFolder.of(config)
    older, left = checkpoint.steps(run.root), run.of_steps()
    if not resume and older:
        raise LongShortError(
            f"output_dir {run.root} holds checkpoints up to step {older[-1][0]}; pass --resume to go on, or choose "
            "another"
        )
    if not resume and left:
        names = ", ".join(dict.fromkeys(path.relative_to(run.root).parts[0] for path in left))
        raise LongShortError(
            f"output_dir {run.root} holds no checkpoint, but {names} of an earlier run; pass --resume to set them "
            "aside and start from the beginning, or choose another"
        )
    if not resume:
        return None
    if resume is True and not older:
        console.say(f"no checkpoint in {run.root} yet: starting from the beginning")
        return None
    folder = older[-1][1] if resume is True else expand(resume, "--resume")
    facts = checkpoint.verify(folder)
    if not isinstance(facts.get("recipe"), dict) or "step" not in facts:
        raise LongShortError(f"cannot resume {folder}: it is no checkpoint of a pair; name one of `longshort train`")
    if left and folder.resolve().parent != run.root.resolve():
        raise LongShortError(
            f"cannot resume {folder} in output_dir {run.root}, which holds steps of another run; choose an output_dir "
            "without any"
        )
    _refuse_other_settings(config, folder, facts)
    return VerifiedCheckpoint(folder, facts)


def _refuse_other_settings(config: LongShortConfig, folder: Path, facts: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of another recipe. `max_steps` may grow, unless the rounds of `schedule` grow with it.

    A setting that the version which saved it did not have yet had its default.
    """
    defaults = dict(leaves(LongShortConfig().model_dump(mode="json")))
    saved, current = (defaults | dict(leaves(tree)) for tree in (facts["recipe"], config.model_dump(mode="json")))
    before, now = saved["max_steps"], config.max_steps
    if before < now and config.schedule == "joint":
        del saved["max_steps"], current["max_steps"]
        console.say(
            f"max_steps was {before} and is now {now}: after step {facts['step']} the learning rate and the reward's "
            f"ramp go on as in a run of {now} steps"
        )
    for key in sorted(saved.keys() | current.keys()):
        if saved.get(key) != current.get(key) and not may_change(key):
            raise LongShortError(
                f"cannot resume {folder}: {key} was {saved.get(key)!r} and is now {current.get(key)!r}; "
                "restore it, or start a new run in another output_dir"
            )


def may_change(key: str) -> bool:
    """Whether a run may continue with another value of this dotted key."""
    return any(re.fullmatch(pattern, key) for pattern in MAY_CHANGE)


def last_metrics(folder: RunFolder) -> dict[str, float]:
    """Return the last whole row of a run's metrics; empty if it has none."""
    lines = folder.metrics.read_bytes().splitlines() if folder.metrics.is_file() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # half a line, of a run that was killed
            return json.loads(line)
    return {}
