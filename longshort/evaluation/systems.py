"""The systems of an evaluation: which models play which role, in which protocol, under which name.

    pair              the trained pair
    long_alone        the trained long model alone: one message of its role, nobody after it; so short_alone
    cold_start        the pair as its cold start left it
    untrained         the pair of models before any of it
    single_long       the long model before its cold start, alone: the single long-chain-of-thought model that a pair must beat
    single_long@3     the same, stopped after 3 thoughts and made to answer (any system in which one model answers alone, any number)
    long_plays_both   the trained long model in both roles; so short_plays_both

`eval.systems` takes these names, or descriptions (longshort/recipe/sections.py, SystemConfig). `eval.cross_play` adds every long model of a list
of checkpoints with every short model of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.dialogue.protocols import make_protocol
from longshort.dialogue.solo import OneMessage, Solo, StoppedEarly
from longshort.evaluation.records import cross_name, last_part
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.recipe.sections import SystemConfig
from longshort.runs import checkpoint
from longshort.runs.model_files import find_folder
from longshort.types import LONG, ROLES, SHORT, LongShortError

PRESETS = {
    "pair": SystemConfig(name="pair", title="pair, trained"),
    "long_alone": SystemConfig(name="long_alone", title="trained long model alone", alone=LONG, in_role=True),
    "short_alone": SystemConfig(name="short_alone", title="trained short model alone", alone=SHORT, in_role=True),
    "cold_start": SystemConfig(
        name="cold_start", title="pair, after cold start", long="cold_start", short="cold_start"
    ),
    "untrained": SystemConfig(name="untrained", title="pair, untrained", long="base", short="base"),
    "single_long": SystemConfig(name="single_long", title="single long model", long="base", alone=LONG),
    "single_short": SystemConfig(name="single_short", title="single short model", short="base", alone=SHORT),
    "long_plays_both": SystemConfig(
        name="long_plays_both", title="trained long model in both roles", short="trained/long"
    ),
    "short_plays_both": SystemConfig(
        name="short_plays_both", title="trained short model in both roles", long="trained/short"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model folder or hub name, and the role whose engine settings it runs with: the one that it was made for."""

    folder: str
    origin: str

    def arithmetic(self, config: LongShortConfig) -> dict[str, Any]:
        """What of its engine's settings its answers depend on; `auto` as what it means on this machine."""
        from longshort.backends.devices import engine_backend

        engine = config.role(self.origin).engine
        return {"backend": engine_backend(engine), **engine.model_dump(include={"dtype", "max_model_len", "extra"})}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row of the table: `models` by the role they play."""

    name: str
    title: str
    models: Mapping[str, Model]
    protocol: object


def systems_of(config: LongShortConfig, chosen: Path | None = None) -> list[System]:
    """All systems that the recipe asks for, in its order. `chosen` is the checkpoint that `trained` means (default: the newest).

    LongShortError for an unknown preset, a name given twice, a base that is not among them, a model that is not there.
    """
    settings = config.eval
    lasts = [last_part(reference) for reference in settings.cross_play]
    if twice := {last for last in lasts if lasts.count(last) > 1}:
        raise LongShortError(
            f"eval.cross_play: {', '.join(sorted(twice))} is the last part of more than one entry, and the matrix tells them by that; "
            "name each checkpoint once, and describe those of one name in eval.systems"
        )
    wanted = [preset(entry) if isinstance(entry, str) else entry for entry in settings.systems]
    wanted += [
        SystemConfig(name=cross_name(long, short), long=long, short=short)
        for long in settings.cross_play
        for short in settings.cross_play
    ]
    if not wanted:
        raise LongShortError("eval.systems is empty; name at least one system, e.g. [pair]")
    names = [entry.name for entry in wanted]
    if twice := {name for name in names if names.count(name) > 1}:
        raise LongShortError(
            f"eval.systems: {', '.join(sorted(twice))} is named more than once; give each system its own name"
        )
    if settings.base and settings.base not in names:
        raise LongShortError(
            f"eval.base is {settings.base!r}, which is not among the systems ({', '.join(names)}); add it to eval.systems"
        )
    return [make_system(config, entry, chosen) for entry in wanted]


def preset(name: str) -> SystemConfig:
    """The description behind a preset's name; `<name>@<k>` stops a model that answers alone after k thoughts."""
    plain, at, thoughts = name.partition("@")
    found = lookup(PRESETS, plain, "eval.systems")
    if not at:
        return found
    if not thoughts.isdecimal() or int(thoughts) < 1 or not found.alone or found.in_role:
        raise LongShortError(
            f"eval.systems: {name!r} should be single_long or single_short, @ and a number of thoughts (single_long@3)"
        )
    title = f"{found.title}, stopped after {thoughts} thought{'s' if thoughts != '1' else ''}"
    return found.model_copy(update={"name": name, "title": title, "thoughts": int(thoughts)})


def make_system(config: LongShortConfig, entry: SystemConfig, chosen: Path | None = None) -> System:
    """The system that a description means in this run."""
    alone = [key for key in ("in_role", "tokens", "thoughts", "instructions") if getattr(entry, key)]
    if alone and not entry.alone:
        raise LongShortError(
            f"eval.systems: {entry.name} sets {' and '.join(alone)}, but two models speak; say which one is alone (alone: long)"
        )
    if entry.in_role and (entry.thoughts or entry.instructions):
        raise LongShortError(
            f"eval.systems: {entry.name} sets {' and '.join(alone)}; a model in its role has the protocol's instructions and writes one "
            "message, so leave out in_role, or the rest"
        )
    roles = (entry.alone,) if entry.alone else make_protocol(config).roles
    references = {LONG: entry.long, SHORT: entry.short}
    models = {role: resolve(config, references[role], role, chosen, f"eval.systems: {entry.name}") for role in roles}
    return System(name=entry.name, title=entry.title or entry.name, models=models, protocol=protocol_of(config, entry))


def protocol_of(config: LongShortConfig, entry: SystemConfig):
    """Both models: the recipe's protocol. One alone: one message, or thought by thought where it is to be stopped."""
    if not entry.alone:
        return make_protocol(config)
    section, recipes = config.role(entry.alone), make_protocol(config)
    alone = {"role": entry.alone, "turn_tokens": entry.tokens or section.engine.max_model_len}
    if entry.in_role:
        if isinstance(recipes, Solo):
            raise LongShortError(
                f"eval.systems: {entry.name} speaks between its role's tags, but protocol.name is solo, which has none; take pair instead"
            )
        return OneMessage(**alone, pair=recipes)
    alone["instructions"] = entry.instructions or (recipes.instructions if isinstance(recipes, Solo) else "")
    if not entry.thoughts:
        return Solo(**alone)
    return StoppedEarly(**alone, thoughts=entry.thoughts, separator=config.eval.separator, ending=config.eval.ending)


def resolve(config: LongShortConfig, reference: str, role: str, chosen: Path | None, where: str) -> Model:
    """`trained`, `checkpoint-40`, `cold_start`, `base`, `trained/short`: what this run made; else a team, a model's folder, a hub name."""
    name, slash, last = reference.rpartition("/")
    stage, origin = (name, last) if slash and last in ROLES and _is_made_here(config, name) else (reference, role)
    if _is_made_here(config, stage):
        folder = _made_here(config, stage, origin, chosen, where)
    elif (Path(reference) / role / "config.json").is_file():
        folder = str(Path(reference) / role)
    else:
        folder = reference
    if not folder:
        raise LongShortError(
            f"{where}: {origin}.model is empty; name a model folder or a hub name, or pass --checkpoint"
        )
    try:
        find_folder(folder, f"{where}, {role}")
    except LongShortError as error:
        known = "what a run made is called trained, checkpoint-<step>, cold_start or base"
        raise LongShortError(f"{error}; {known}") from error
    return Model(folder=folder, origin=origin)


def _is_made_here(config: LongShortConfig, stage: str) -> bool:
    return stage in ("trained", "cold_start", "base") or (
        stage.startswith("checkpoint-") and (Path(config.output_dir) / stage / checkpoint.MANIFEST).is_file()
    )


def _made_here(config: LongShortConfig, stage: str, role: str, chosen: Path | None, where: str) -> str:
    """The folder of a model that this run made, or the recipe's own model; empty where the recipe names none."""
    from longshort.runs.layout import base_model, cold_model

    output_dir = Path(config.output_dir)
    if stage == "trained":
        found = checkpoint.steps(output_dir)
        folder = chosen or (found[-1][1] if found else None)
        if folder:
            return str(folder / role)
        stage = "cold_start" if config.coldstart else "base"
    if stage == "base":
        return base_model(config, role)
    if stage == "cold_start":
        if not config.coldstart:
            raise LongShortError(
                f"{where}: the models of the cold start, but the recipe has no coldstart section; leave this system out"
            )
        return cold_model(config, role)
    return str(output_dir / stage / role)


def in_order(systems: Sequence[System]) -> list[System]:
    """The systems, those with models in common next to each other, so that an engine is used up before the next one starts."""
    left, ordered, running = list(systems), [], set()
    while left:
        nearest = min(left, key=lambda system: sum(model.folder not in running for model in system.models.values()))
        left.remove(nearest)
        ordered.append(nearest)
        running = {model.folder for model in nearest.models.values()}
    return ordered
