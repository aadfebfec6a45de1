"""The systems of an evaluation: which models play which role, in which protocol, under which name.

    pair              the trained pair
    long_alone        the trained long model alone: one message of its role, graded as it stands; short_alone likewise
    cold_start        the pair after its cold start, before reinforcement learning
    untrained         the pair of models before any training
    single_long       the long model before its cold start, alone: the single reasoning model that a pair must beat
    single_long@3     the same, stopped after 3 thoughts and made to answer; single_short@3 likewise, any number
    long_plays_both   the trained long model in both roles; short_plays_both likewise

`eval.systems` takes these names, or descriptions (SystemConfig in longshort/recipe/sections.py). `eval.cross_play`
adds every long model of a list of checkpoints with every short model of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longshort.backends.devices import engine_backend
from longshort.dialogue.protocols import LongShort, OneMessage, make_protocol
from longshort.dialogue.solo import Solo, StoppedEarly, alone
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.records import DescribedSystem, cross_name, last_part
from longshort.recipe.schema import LongShortConfig, lookup
from longshort.recipe.sections import SystemConfig
from longshort.runs import checkpoint
from longshort.runs.layout import RunFolder, base_model, cold_model
from longshort.runs.model_files import find_folder
from longshort.types import LONG, ROLES, SHORT, LongShortError

_PRESETS: dict[str, dict[str, Any]] = {
    "pair": {"title": "pair, trained"},
    "long_alone": {"title": "trained long model alone", "alone": LONG, "in_role": True},
    "short_alone": {"title": "trained short model alone", "alone": SHORT, "in_role": True},
    "cold_start": {"title": "pair, after cold start", "long": "cold_start", "short": "cold_start"},
    "untrained": {"title": "pair, untrained", "long": "base", "short": "base"},
    "single_long": {"title": "single long model", "long": "base", "alone": LONG},
    "single_short": {"title": "single short model", "short": "base", "alone": SHORT},
    "long_plays_both": {"title": "trained long model in both roles", "short": "trained/long"},
    "short_plays_both": {"title": "trained short model in both roles", "long": "trained/short"},
}
PRESETS = {name: SystemConfig(name=name, **settings) for name, settings in _PRESETS.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model folder or hub name, and the role that it was made for: it runs with that role's engine settings."""

    folder: str
    origin: str

    def arithmetic(self, config: LongShortConfig) -> dict[str, Any]:
        """Return the engine settings that the model's answers depend on; `auto` as what it means on this machine."""
        engine = config.role(self.origin).engine
        return {"backend": engine_backend(engine), **engine.model_dump(include={"dtype", "max_model_len", "extra"})}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A row of the table: `models` by the role that they play."""

    name: str
    title: str
    models: Mapping[str, Model]
    protocol: TurnProtocol

    @property
    def described(self) -> DescribedSystem:
        """The system as results files describe it."""
        models = {role: model.folder for role, model in self.models.items()}
        return DescribedSystem(title=self.title, models=models, protocol=type(self.protocol).__name__)


def systems_of(config: LongShortConfig, chosen: Path | None = None) -> list[System]:
    """Return all systems of the recipe, in its order. `chosen` is the checkpoint that `trained` means.

    LongShortError for an unknown preset, a repeated name, a base that is no system, a model that does not exist.
    """
    settings = config.eval
    if twice := _repeated(last_part(reference) for reference in settings.cross_play):
        raise LongShortError(
            f"eval.cross_play: {twice} is the last part of more than one entry, and the matrix uses it as name; "
            "name each checkpoint once, and describe those of one name in eval.systems"
        )
    entries = [preset(entry) if isinstance(entry, str) else entry for entry in settings.systems]
    entries += [
        SystemConfig(name=cross_name(long, short), long=long, short=short)
        for long in settings.cross_play
        for short in settings.cross_play
    ]
    if not entries:
        raise LongShortError("eval.systems is empty; name at least one system, e.g. [pair]")
    names = [entry.name for entry in entries]
    if twice := _repeated(names):
        raise LongShortError(f"eval.systems: {twice} is named more than once; give each system its own name")
    if settings.base and settings.base not in names:
        raise LongShortError(
            f"eval.base {settings.base!r} is not among the systems ({', '.join(names)}); add it to eval.systems"
        )
    return [make_system(config, entry, chosen) for entry in entries]


def _repeated(names: Iterable[str]) -> str:
    return ", ".join(sorted(name for name, count in Counter(names).items() if count > 1))


def preset(name: str) -> SystemConfig:
    """Return the description behind a preset's name; `<name>@<k>` stops a model that answers alone after k thoughts."""
    plain, at, thoughts = name.partition("@")
    described = lookup(PRESETS, plain, "eval.systems")
    if not at:
        return described
    if not thoughts.isdecimal() or int(thoughts) < 1 or not described.alone or described.in_role:
        raise LongShortError(
            f"eval.systems: {name!r} should be single_long or single_short, @ and a number of thoughts (single_long@3)"
        )
    title = f"{described.title}, stopped after {thoughts} thought{'s' if thoughts != '1' else ''}"
    return described.model_copy(update={"name": name, "title": title, "thoughts": int(thoughts)})


def make_system(config: LongShortConfig, entry: SystemConfig, chosen: Path | None = None) -> System:
    """Return the system that a description means in this run."""
    only_alone = [key for key in ("in_role", "tokens", "thoughts", "instructions") if getattr(entry, key)]
    where = f"eval.systems: {entry.name}"
    sets = f"{where} sets {' and '.join(only_alone)}"
    if only_alone and not entry.alone:
        raise LongShortError(f"{sets}, but two models speak; say which one is alone (alone: long)")
    if entry.in_role and (entry.thoughts or entry.instructions):
        raise LongShortError(
            f"{sets}; a model in its role has the protocol's instructions and writes one message: "
            "leave out in_role, or the other settings"
        )
    roles = (entry.alone,) if entry.alone else make_protocol(config).roles
    references = {LONG: entry.long, SHORT: entry.short}
    models = {role: resolve(config, references[role], role, chosen, where) for role in roles}
    return System(name=entry.name, title=entry.title or entry.name, models=models, protocol=protocol_of(config, entry))


def protocol_of(config: LongShortConfig, entry: SystemConfig) -> TurnProtocol:
    """Return the recipe's protocol for a pair; one message, or thoughts up to a number, for one model."""
    protocol, role = make_protocol(config), entry.alone
    if not role:
        return protocol
    tokens = entry.tokens or config.role(role).engine.max_model_len
    if entry.in_role:
        if not isinstance(protocol, LongShort):
            raise LongShortError(
                f"eval.systems: {entry.name} speaks between its role's tags, but protocol.name is "
                f"{config.protocol.name}, which has none; take pair instead"
            )
        return OneMessage(role=role, turn_tokens=tokens, pair=protocol)
    own = protocol.instructions_of(role) if len(protocol.roles) == 1 else alone(config, role)
    instructions = entry.instructions or own
    if not entry.thoughts:
        return Solo(role=role, turn_tokens=tokens, instructions=instructions)
    return StoppedEarly(
        role=role,
        turn_tokens=tokens,
        instructions=instructions,
        thoughts=entry.thoughts,
        separator=config.eval.separator,
        ending=config.eval.ending,
    )


def resolve(config: LongShortConfig, reference: str, role: str, chosen: Path | None, where: str) -> Model:
    """Return the model that a reference means in a role.

    `trained`, `checkpoint-40`, `cold_start`, `base` and `trained/short` are what this run made; anything else is a
    team's folder, a model's folder or a hub name.
    """
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
        stage.startswith("checkpoint-") and (RunFolder.of(config).root / stage / checkpoint.MANIFEST).is_file()
    )


def _made_here(config: LongShortConfig, stage: str, role: str, chosen: Path | None, where: str) -> str:
    """Return the folder of a model that this run made, or the recipe's own model; empty if the recipe names none."""
    root = RunFolder.of(config).root
    if stage == "trained":
        saved = checkpoint.steps(root)
        if folder := chosen or (saved[-1][1] if saved else None):
            return str(folder / role)
        stage = "cold_start" if config.coldstart else "base"
    if stage == "base":
        return base_model(config, role)
    if stage != "cold_start":
        return str(root / stage / role)
    if not config.coldstart:
        raise LongShortError(
            f"{where}: the models of the cold start, but the recipe has no coldstart section; leave this system out"
        )
    return cold_model(config, role)


def in_order(systems: Sequence[System]) -> list[System]:
    """Order the systems so that those with common models follow each other, and few engines have to start twice."""
    left, ordered, running = list(systems), [], set()
    while left:
        nearest = min(left, key=lambda system: sum(model.folder not in running for model in system.models.values()))
        left.remove(nearest)
        ordered.append(nearest)
        running = {model.folder for model in nearest.models.values()}
    return ordered
