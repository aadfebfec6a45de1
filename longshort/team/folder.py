"""Where a team is found: a team folder, a checkpoint, a run or a recipe; and how a team folder is written.

team/{long/, short/}     two models that `from_pretrained` loads alone
team/team.yaml           the protocol with its settings, sampling, prices, engines: the part of a recipe that answering needs
team/README.md           the team card
team/manifest.json       the SHA-256 of every file of the models
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from longshort.dialogue.protocols import make_protocol
from longshort.dialogue.solo import Solo
from longshort.evaluation.systems import System, make_system, preset
from longshort.recipe.schema import LongShortConfig, load, parse
from longshort.recipe.strict_yaml import override, read_yaml
from longshort.runs import checkpoint, sealed
from longshort.team.card import without_paths, write_card
from longshort.types import LongShortError
from longshort.version import __version__

MODELS = ("long/", "short/")
REMEDY = "save the team again"
HEAD = "# How this team answers. Any of it may be changed here, or as key.sub=value where the team is loaded.\n"
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


def save_team(folder: str | Path, config: LongShortConfig, chosen: Path) -> Path:
    """Write the models of checkpoint `chosen` and the recipe's protocol as a team folder, in place of an older one; returns it.

    Weights are hard links to the checkpoint's where the file system can, so they take no room twice. LongShortError where the
    checkpoint is damaged, something else lies in `folder`, or it cannot be written.
    """
    folder = Path(folder).resolve()
    step = checkpoint.verify(chosen, MODELS)["step"]
    if folder.exists() and not (folder / SETTINGS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise LongShortError(f"{folder} is there already and is no team folder; name one that is not, or an empty one")
    partial = folder.with_name(f".{folder.name}")
    name, protocol = Path(config.output_dir).resolve().name, make_protocol(config)
    settings = yaml.safe_dump(team_settings(config, protocol), sort_keys=False, allow_unicode=True)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for role in protocol.roles:
            shutil.copytree(chosen / role, partial / role, copy_function=_link_weights)
        (partial / SETTINGS).write_text(HEAD + settings, encoding="utf-8")
        write_card(partial, folder.name, name, config, chosen, step)
        return sealed.seal(partial, folder, "team", {"name": name, "step": step, "longshort": __version__}, MODELS)
    except OSError as error:
        raise LongShortError(
            f"the team folder {folder} cannot be written ({error}); make room, or choose another place"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def team_settings(config: LongShortConfig, protocol) -> dict[str, Any]:
    """The part of a recipe that answering needs, with the protocol's texts written out: another version's defaults change nothing."""
    wanted = {"protocol", "temperature", "top_p", "top_k", "max_engine_restarts", "engine_timeout_s"}
    settings = config.model_dump(mode="json", include=wanted)
    for role in protocol.roles:
        settings[role] = config.role(role).model_dump(
            mode="json", include={"price", "turn_tokens", "instructions", "engine"}
        )
        extra = settings[role]["engine"]["extra"]
        settings[role]["engine"]["extra"] = {
            key: value for key, value in extra.items() if without_paths(value) == value
        }
        settings[role]["instructions"] = (
            protocol.instructions if isinstance(protocol, Solo) else protocol.instructions[role]
        )
    if not isinstance(protocol, Solo):
        settings["protocol"]["final_notice"] = protocol.final_notice
    return settings


def _link_weights(source: str, target: str) -> None:
    """Copy a file of a model; weights, which nobody edits in place, are linked where that can be done."""
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _read(source: Path, overrides: Sequence[str]) -> tuple[str, LongShortConfig, Path | None]:
    """Name, settings, and the folder of the trained models; None where the recipe says what they are."""
    if (source / SETTINGS).is_file():
        return _read_team(source, overrides)
    if (source / checkpoint.MANIFEST).is_file():
        facts = checkpoint.verify(source, MODELS)
        config = parse(_overridden(facts["recipe"], overrides), source=str(source / checkpoint.MANIFEST))
        return source.resolve().parent.name, config, source
    if not source.exists():
        raise LongShortError(f"{source} does not exist; name a team folder, a checkpoint, a run's folder or a recipe")
    if source.is_dir() and not (source / RECIPE).is_file():
        raise LongShortError(
            f"{source} is no team: it has neither {SETTINGS} (a team folder) nor {checkpoint.MANIFEST} (a checkpoint) nor {RECIPE} (a run)"
        )
    config = (
        load(source / RECIPE, [*overrides, f"output_dir={_yaml(str(source))}"])
        if source.is_dir()
        else load(source, overrides)
    )
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
