"""Where a team lies: a team folder, a checkpoint, a run or a recipe; and how a team folder is written.

team/{long/, short/}     two models that `from_pretrained` loads alone
team/team.yaml           the part of a recipe that answering needs: protocol, sampling, prices, engines
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

from longshort.dialogue.protocols import LongShort, make_protocol
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.systems import System, make_system, preset
from longshort.recipe.schema import LongShortConfig, load, parse
from longshort.recipe.strict_yaml import override, read_yaml
from longshort.runs import checkpoint, sealed
from longshort.runs.layout import RunFolder
from longshort.team.card import without_paths, write_card
from longshort.types import ROLES, LongShortError
from longshort.version import __version__

MODELS = ("long/", "short/")
REMEDY = "save the team again"
HEAD = "# How this team answers. Any of it may be changed here, or as key.sub=value where the team is loaded.\n"
SETTINGS = "team.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTeam:
    """A team's name, its settings as a recipe, and its models in their protocol."""

    name: str
    config: LongShortConfig
    system: System


def find_team(source: str | Path, overrides: Sequence[str] = (), engine: Mapping[str, Any] | None = None) -> StoredTeam:
    """Return the verified team in `source`: a team folder, a checkpoint, or the newest one of a run's folder or recipe.

    `overrides` are settings as on the command line (`long.engine.num_gpus=1`), `engine` those of both roles' engines.
    LongShortError if there is no team, if a file of it is damaged or of another format, or if a setting does not exist.
    """
    for_engines = [
        f"{role}.engine.{key}={json.dumps(value)}" for key, value in (engine or {}).items() for role in ROLES
    ]
    name, config, models = _read(Path(source), [*overrides, *for_engines])
    return StoredTeam(name=name, config=config, system=make_system(config, preset("pair"), models))


def save_team(folder: str | Path, config: LongShortConfig, chosen: Path) -> Path:
    """Write the models of checkpoint `chosen` and the recipe's protocol as a team folder; it replaces an older one.

    Weights are hard links to the checkpoint's if the file system has links, so they take no room twice. LongShortError
    if the checkpoint is damaged, if something else lies in `folder`, or if it cannot be written.
    """
    folder = Path(folder).resolve()
    step = checkpoint.verify(chosen, MODELS)["step"]
    if folder.exists() and not (folder / SETTINGS).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise LongShortError(f"{folder} exists and is no team folder; name a new or an empty one")
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


def team_settings(config: LongShortConfig, protocol: TurnProtocol) -> dict[str, Any]:
    """Return the part of a recipe that answering needs, with the protocol's texts written out, so that the defaults of
    another version change nothing."""
    included = {"protocol", "temperature", "top_p", "top_k", "max_engine_restarts", "engine_timeout_s"}
    included |= {"plugins"} if config.plugins else set()  # one of them may hold the protocol
    settings = config.model_dump(mode="json", include=included)
    for role in protocol.roles:
        section = config.role(role).model_dump(mode="json", include={"price", "turn_tokens", "instructions", "engine"})
        extra = section["engine"]["extra"]
        section["engine"]["extra"] = {key: value for key, value in extra.items() if without_paths(value) == value}
        settings[role] = section | {"instructions": protocol.instructions_of(role)}
    if isinstance(protocol, LongShort):
        settings["protocol"]["final_notice"] = protocol.final_notice
    return settings


def _link_weights(source: str, target: str) -> None:
    """Copy a file of a model; link weights, which are never edited in place, if the file system can."""
    if source.endswith(".safetensors"):
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _read(source: Path, overrides: Sequence[str]) -> tuple[str, LongShortConfig, Path | None]:
    """Return (name, settings, folder of the trained models; None if the recipe says what they are)."""
    if (source / SETTINGS).is_file():
        return _read_team(source, overrides)
    if (source / checkpoint.MANIFEST).is_file():
        facts = checkpoint.verify(source, MODELS)
        config = _parse(facts["recipe"], overrides, source / checkpoint.MANIFEST)
        return source.resolve().parent.name, config, source
    if not source.exists():
        raise LongShortError(f"{source} does not exist; name a team folder, a checkpoint, a run's folder or a recipe")
    if not source.is_dir():
        config = load(source, overrides)
    elif (recipe := RunFolder(source).recipe).is_file():
        config = load(recipe, [*overrides, f"output_dir={json.dumps(str(source))}"])
    else:
        files = f"{SETTINGS} (a team folder), {checkpoint.MANIFEST} (a checkpoint) or {recipe.name} (a run)"
        raise LongShortError(f"{source} is no team: it has no {files}")
    folder = RunFolder.of(config)
    if checkpoints := checkpoint.steps(folder.root):
        checkpoint.verify(checkpoints[-1][1], MODELS)
    elif (folder.team / SETTINGS).is_file():  # the checkpoints were removed, the team was not
        return _read_team(folder.team, overrides)
    return folder.root.resolve().name, config, None


def _read_team(folder: Path, overrides: Sequence[str]) -> tuple[str, LongShortConfig, Path]:
    name = sealed.verify(folder, "team", REMEDY, MODELS)["name"]
    path = folder / SETTINGS
    settings = read_yaml(path.read_bytes(), str(path))
    if not isinstance(settings, dict):
        raise LongShortError(f"{path} is a mapping of settings (key: value), got {type(settings).__name__}; {REMEDY}")
    return name, _parse(settings, overrides, path), folder


def _parse(settings: dict[str, Any], overrides: Sequence[str], source: Path) -> LongShortConfig:
    for text in overrides:
        override(settings, text, LongShortConfig)
    return parse(settings, source=str(source))
