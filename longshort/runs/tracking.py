"""Where metrics go: `metrics.jsonl` always; tensorboard, wandb or trackio when the recipe asks for them, under the same names."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError

Tracker = Callable[[int, Mapping[str, float]], None]


def _tensorboard(config: LongShortConfig) -> Tracker:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(
        str(Path(config.output_dir) / "tensorboard")
    )

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb(config: LongShortConfig) -> Tracker:
    run = importlib.import_module("wandb").init(
        project="longshort", name=Path(config.output_dir).name, config=config.model_dump(), resume="allow"
    )
    return lambda step, metrics: run.log(dict(metrics), step=step)


def _trackio(config: LongShortConfig) -> Tracker:
    module = importlib.import_module("trackio")
    module.init(project="longshort", name=Path(config.output_dir).name, config=config.model_dump())
    return lambda step, metrics: module.log(dict(metrics), step=step)


TRACKERS: dict[str, Callable[[LongShortConfig], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def open_trackers(config: LongShortConfig) -> Tracker:
    """One function that logs a step everywhere. Raises LongShortError when a requested tracker is not installed."""
    trackers = []
    for name in config.report_to:
        try:
            trackers.append(TRACKERS[name](config))
        except ImportError as error:
            raise LongShortError(
                f"report_to asks for {name!r}, which is not installed ({error}): pip install 'longshort[tracking]'"
            ) from error
    path = Path(config.output_dir) / "metrics.jsonl"

    def log(step: int, metrics: Mapping[str, float]) -> None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
        for tracker in trackers:
            tracker(step, metrics)

    return log
