"""The team card: the README.md of a team folder (card.md.j2), with the front matter that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from longshort.dialogue.protocols import LongShort, make_protocol
from longshort.dialogue.turns import TurnProtocol
from longshort.evaluation.records import ALL, STAGES, TRAINING, EvaluationFile, ResultRow, cross_name
from longshort.evaluation.tables import benchmark_title, table
from longshort.recipe.schema import LongShortConfig
from longshort.runs.layout import RunFolder
from longshort.runs.model_files import read_facts
from longshort.types import LONG, SHORT
from longshort.version import __version__

TRAINED_PAIR = ("pair", "trained")
"""The trained pair's name in an evaluation, and in a run's own evaluation of its stages."""
TAGS = ["longshort", "reasoning", "multi-agent", "reinforcement-learning"]
HOW = {
    LONG: "thinks at length, one important thought at a time",
    SHORT: "writes the rest briefly, hands hard steps back, and answers",
}


def write_card(folder: Path, final_name: str, name: str, config: LongShortConfig, checkpoint: Path, step: int) -> None:
    """Write `folder/README.md` for the models of `checkpoint`, made at `step` of the run with this recipe.

    `name` is the team's, `final_name` the name that `folder` will have.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["repr"] = repr
    protocol, (tables, accuracies) = make_protocol(config), _results(config, checkpoint, step)
    base_models = [config.role(role).model for role in protocol.roles if _on_hub(config.role(role).model)]
    front = ModelCardData(
        library_name="longshort",
        license="unknown",  # depends on the base models and on who publishes this
        pipeline_tag="text-generation",
        tags=TAGS,
        base_model=base_models or None,
        model_name=name,
        eval_results=accuracies or None,
    )
    recipe = without_paths(config.model_dump(mode="json", exclude_defaults=True))
    body = environment.get_template("card.md.j2").render(
        name=name,
        folder=final_name,
        how=HOW,
        pair=len(protocol.roles) > 1,
        protocol=protocol,
        roles=[_role(folder, role, config, protocol) for role in protocol.roles],
        recipe=yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).strip(),
        step=step,
        tables="\n\n".join(tables),
        version=__version__,
    )
    (folder / "README.md").write_text(f"---\n{front.to_yaml()}\n---\n\n{body}\n", encoding="utf-8")


def without_paths(value: Any) -> Any:
    """Return settings in which only the last part of an absolute path is left: the rest shows where files lie here."""
    if isinstance(value, Mapping):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    return Path(value).name if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)\S+$", value) else value


def _role(folder: Path, role: str, config: LongShortConfig, protocol: TurnProtocol) -> dict[str, Any]:
    """Return what the card says about a role's model."""
    parameters, section = read_facts(str(folder / role), role).parameters, config.role(role)
    instructions, tags = protocol.instructions_of(role), protocol if isinstance(protocol, LongShort) else None
    return {
        "name": role,
        "size": f"{parameters / 1e6:,.2f}M" if parameters < 1e8 else f"{parameters / 1e9:,.2f}B",
        "made_from": section.model if _on_hub(section.model) else "",
        "price": f"{section.price:g}",
        "before": f"{instructions}\n\n" if instructions else "",
        "turn_tokens": section.turn_tokens,
        "opening": tags.opening[role] if tags else "",
        "closing": list(tags.closing[role]) if tags else [],
    }


def _results(config: LongShortConfig, checkpoint: Path, step: int) -> tuple[list[str], list[EvalResult]]:
    """Return tables of what the run measured, without other checkpoints of it, and the team's own accuracies."""
    tables, accuracies = [], []
    for file in _evaluations(RunFolder.of(config).evaluations):
        shown = [row for row in file.results if _belongs(file, row.system, checkpoint, step == config.max_steps)]
        for benchmark, decoding in dict.fromkeys((row.benchmark, row.decoding) for row in shown):
            rows = [row for row in shown if (row.benchmark, row.decoding) == (benchmark, decoding)]
            title, counts = benchmark_title(file, benchmark), rows[0].measures
            size = "" if benchmark == ALL else f", {counts['n']} problems × {counts['samples']}"
            tables.append(f"{title}, {decoding}{size} ({file.name}, {file.made[:10]}):\n\n{table(rows, file.systems)}")
            own = [row for row in rows if row.system in TRAINED_PAIR and benchmark != ALL]
            accuracies += [_accuracy(title, row) for row in own]
    return tables, accuracies


def _evaluations(folder: Path) -> Iterator[EvaluationFile]:
    """Yield the run's evaluations; that of its stages only if there is no other one."""
    names = sorted(path.stem for path in folder.glob("*.json") if path.stem not in (STAGES, TRAINING))
    for name in names or [STAGES]:
        if (folder / f"{name}.json").is_file():
            yield EvaluationFile.read(folder / f"{name}.json")


def _belongs(file: EvaluationFile, system: str, checkpoint: Path, last: bool) -> bool:
    """Return whether a system's figures belong on this card: not those of cross-play or of other checkpoints."""
    played = file.cross_play
    if played and system in {cross_name(long, short) for long in played.long for short in played.short}:
        return False
    if system == "trained":  # measured on the live pair at the end of its run
        return last
    folders = {part for model in file.systems[system].models.values() for part in Path(model).parts}
    return {part for part in folders if re.fullmatch(r"checkpoint-\d+", part)} <= {checkpoint.name}


def _accuracy(title: str, row: ResultRow) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=re.sub(r"[^\w.-]+", "-", Path(row.benchmark).name),
        dataset_name=title,
        metric_type="accuracy",
        metric_name=f"accuracy, {row.decoding}",
        metric_value=round(row.measures["accuracy"], 4),
    )


def _on_hub(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not Path(model).exists()
