"""Where metrics go: always to `metrics.jsonl`; also to tensorboard, wandb or trackio, under the same names, if the
recipe asks for it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec

from longshort.recipe.schema import LongShortConfig, lookup
from longshort.runs.files import writing
from longshort.runs.layout import RunFolder
from longshort.types import LongShortError

Tracker = Callable[[int, Mapping[str, float]], None]
"""Logs the metrics of a step."""


def _tensorboard(config: LongShortConfig) -> Tracker:
    writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(RunFolder.of(config).tensorboard))

    def log(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return log


def _wandb(config: LongShortConfig) -> Tracker:
    run = importlib.import_module("wandb").init(
        project="longshort", name=RunFolder.of(config).root.name, config=config.model_dump(), resume="allow"
    )
    return lambda step, metrics: run.log(dict(metrics), step=step)


def _trackio(config: LongShortConfig) -> Tracker:
    trackio = importlib.import_module("trackio")
    trackio.init(project="longshort", name=RunFolder.of(config).root.name, config=config.model_dump())
    return lambda step, metrics: trackio.log(dict(metrics), step=step)


TRACKERS: dict[str, Callable[[LongShortConfig], Tracker]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "trackio": _trackio,
}
"""By the name that `report_to` uses: add your own here."""


PACKAGES = ("tensorboard", "wandb", "trackio")
"""What our trackers import; a tracker of your own answers for itself."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse an unknown tracker, and one of ours that is not installed."""
    for name in names:
        lookup(TRACKERS, name, "report_to")
    if missing := [name for name in names if name in PACKAGES and not find_spec(name)]:
        raise LongShortError(
            f"report_to asks for {', '.join(missing)}, not installed: pip install 'longshort[tracking]', or remove it"
        )


def open_trackers(config: LongShortConfig) -> Tracker:
    """Return a function that logs a step everywhere; LongShortError for an unknown or missing tracker."""
    check_trackers(config.report_to)
    trackers = [TRACKERS[name](config) for name in config.report_to]
    path = RunFolder.of(config).metrics

    def log(step: int, metrics: Mapping[str, float]) -> None:
        with writing(path), path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": step, **metrics}) + "\n")
        for tracker in trackers:
            tracker(step, metrics)

    return log
