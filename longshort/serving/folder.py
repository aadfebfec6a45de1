"""Where a team is found: a team folder, a checkpoint, a run or a recipe; and how a team folder is written.

team/{long/, short/}     two models that `from_pretrained` loads alone
team/team.yaml           the protocol with its settings, sampling, prices, engines: the part of a recipe that answering needs
team/README.md           the team card
team/manifest.json       the SHA-256 of every file of the models
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort import checkpoint, sealed
from longshort.config import LongShortConfig, load, parse
from longshort.evaluation.systems import System, make_system, preset
from longshort.strict_yaml import override, read_yaml
from longshort.types import LongShortError

MODELS = ("long/", "short/")
REMEDY = "save the team again"
SETTINGS, RECIPE = "team.yaml", "recipe.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A team's name, its settings as a recipe, and its models in their protocol."""

    name: str
    config: LongShortConfig
    system: System


def find_team(source: str | Path, overrides: Sequence[str] = (), engine: Mapping[str, Any] | None = None) -> Found:
    """The team in `source`, verified: a team folder, a checkpoint folder, a run's folder or a recipe (both: its newest checkpoint).

    `overrides` are settings as on the command line (`long.engine.num_gpus=1`), `engine` such of both roles' engines. LongShortError
    where there is no team, where a file of it is damaged or of another format, and for settings that do not exist.
    """
    source = Path(source)
    overrides = [
        *overrides,
        *(f"{role}.engine.{key}={_yaml(value)}" for key, value in (engine or {}).items() for role in ("long", "short")),
    ]
    name, config, chosen = _read(source, overrides)
    return Found(name=name, config=config, system=make_system(config, preset("pair"), chosen))


def _read(source: Path, overrides: Sequence[str]) -> tuple[str, LongShortConfig, Path | None]:
    """Name, settings, and the folder of the trained models; None where the recipe says what they are."""
    if (source / SETTINGS).is_file():
        return _read_team(source, overrides)
    if (source / checkpoint.MANIFEST).is_file():
        facts = checkpoint.verify(source, MODELS)
        config = parse(_overridden(facts["recipe"], overrides), source=str(source / checkpoint.MANIFEST))
        return source.resolve().parent.name, config, source
    if source.is_dir() and not (source / RECIPE).is_file():
        raise LongShortError(
            f"{source} is no team: it has neither {SETTINGS} (a team folder) nor {checkpoint.MANIFEST} (a checkpoint) nor {RECIPE} (a run)"
        )
    config = load(source / RECIPE, [*overrides, f"output_dir={_yaml(str(source))}"]) if source.is_dir() else load(source, overrides)
    output_dir = Path(config.output_dir)
    if found := checkpoint.steps(output_dir):
        checkpoint.verify(found[-1][1], MODELS)
    elif (output_dir / "team" / SETTINGS).is_file():  # the checkpoints were removed, what came of them was not
        return _read_team(output_dir / "team", overrides)
    return output_dir.resolve().name, config, None


def _read_team(folder: Path, overrides: Sequence[str]) -> tuple[str, LongShortConfig, Path]:
    name = sealed.verify(folder, "team", REMEDY, MODELS)["name"]
    path = folder / SETTINGS
    tree = read_yaml(path.read_bytes(), str(path))
    if not isinstance(tree, dict):
        raise LongShortError(f"{path} is a mapping of settings (key: value), got {type(tree).__name__}; {REMEDY}")
    return name, parse(_overridden(tree, overrides), source=str(path)), folder


def _overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        override(tree, text)
    return tree


def _yaml(value: Any) -> str:
    """A value as it stands behind `key=`: JSON is YAML."""
    return json.dumps(value)
