"""The team card: the README.md of a team folder, with the front matter that model hubs read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from longshort.dialogue.protocols import make_protocol
from longshort.dialogue.solo import Solo
from longshort.evaluation.records import ALL, STAGES, TRAINING, EvaluationFile, ResultRow
from longshort.evaluation.tables import sections, table
from longshort.recipe.schema import LongShortConfig
from longshort.runs.model_files import read_facts
from longshort.version import __version__

TEAM = ("pair", "trained")
"""How an evaluation, and a run's own one of its stages, call the trained pair."""
NONE_YET = "Nothing had been measured when this folder was written. `longshort eval` does it; saved again, the team has the tables here."
HOW = {
    "long": "thinks at length, one important thought at a time",
    "short": "writes the rest briefly, hands hard steps back, and answers",
}


def write_card(folder: Path, called: str, name: str, config: LongShortConfig, chosen: Path, step: int) -> None:
    """Write `folder/README.md` for the models in `folder`: those of checkpoint `chosen`, made at `step` of the run with this recipe.

    `name` is the team's, `called` what the folder will be called.
    """
    protocol, (tables, measures) = make_protocol(config), _results(config, chosen, step)
    front = ModelCardData(
        library_name="longshort",
        license="unknown",  # the base models' decides, and whoever publishes this
        pipeline_tag="text-generation",
        tags=["longshort", "reasoning", "multi-agent", "reinforcement-learning"],
        base_model=[model for role in protocol.roles if _on_hub(model := config.role(role).model)] or None,
        model_name=name,
        eval_results=measures or None,
    )
    roles = "\n".join(_role(folder, role, config) for role in protocol.roles)
    body = f"""# {name}

{_what(protocol)}

{roles}

The protocol's settings, sampling and engines stand in `team.yaml`, the hash of every model file in `manifest.json`.

## Use

```python
from longshort import Team

team = Team.from_pretrained("{called}")  # this folder
episode = team.solve("your question")
print(team.answer(episode))
```

`longshort chat {called}` shows the dialogue in a terminal, `longshort serve {called}` is an OpenAI-compatible endpoint.

{"".join(_alone(role, config, protocol) for role in protocol.roles)}
## Results

{tables or NONE_YET}

## Training

Reinforcement learning up to step {step} with longshort {__version__}. The recipe, where it differs from the defaults:

```yaml
{yaml.safe_dump(without_paths(config.model_dump(mode="json", exclude_defaults=True)), sort_keys=False, allow_unicode=True).strip()}
```

## Limits

It was trained on single questions of the kind in its training data; other questions, longer conversations and other languages are
untried unless a table above names them. It may be wrong without saying so: check what matters.
"""
    (folder / "README.md").write_text(f"---\n{front.to_yaml()}\n---\n\n{body}", encoding="utf-8")


def without_paths(value: Any) -> Any:
    """Settings that tell nobody where files lie on this machine: of an absolute path only its last part is left."""
    if isinstance(value, Mapping):
        return {key: without_paths(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(each) for each in value]
    return Path(value).name if isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:\\)\S+$", value) else value


def _what(protocol) -> str:
    if isinstance(protocol, Solo):
        return "A reasoning model, trained by reinforcement learning with longshort."
    return (
        "Two language models that solve a problem together, trained by multi-turn reinforcement learning with longshort (the method: "
        "[Long⊗Short](https://arxiv.org/abs/2505.11827)). They take turns, at most "
        f"{protocol.max_exchanges} times, within {protocol.episode_tokens:,} tokens:"
    )


def _role(folder: Path, role: str, config: LongShortConfig) -> str:
    facts, section = read_facts(str(folder / role), role), config.role(role)
    made_from = f", from {section.model}" if _on_hub(section.model) else ""
    how = f": {HOW[role]}" if config.protocol.name != "solo" else ""
    size = f"{facts.parameters / 1e6:,.2f}M" if facts.parameters < 1e8 else f"{facts.parameters / 1e9:,.2f}B"
    return f"- `{role}/`{how} ({size} parameters{made_from}; a token counts {section.price:g} in `cost`)"


def _alone(role: str, config: LongShortConfig, protocol) -> str:
    solo = isinstance(protocol, Solo)
    instructions = protocol.instructions if solo else protocol.instructions[role]
    opening = "" if solo else protocol.opening[role]
    closing = "" if solo else f", stop_strings={list(protocol.closing[role])!r}, tokenizer=tokenizer"
    turn = f"one message, `{opening}` … `{'` or `'.join(protocol.closing[role])}`" if not solo else "one message"
    return f"""The {role} model alone, {turn}:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{role}"  # from a hub: the repository's name, and subfolder="{role}" in both calls
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
message = {{"role": "user", "content": {(instructions + chr(10) * 2 if instructions else "")!r} + "your question"}}
prompt = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False) + {opening!r}
inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt", return_token_type_ids=False)
written = model.generate(**inputs, max_new_tokens={config.role(role).turn_tokens}{closing})
print(tokenizer.decode(written[0, inputs["input_ids"].shape[1]:]))
```

"""


def _results(config: LongShortConfig, chosen: Path, step: int) -> tuple[str, list[EvalResult]]:
    """Tables of what the run measured, without other checkpoints of it; and the team's own accuracies."""
    parts, measures = [], []
    for file in _evaluations(Path(config.output_dir) / "eval"):
        rows = [row for row in file.results if _is_shown(file, row.system, chosen, step == config.max_steps)]
        for heading, group in sections(file, rows):
            parts.append(f"{heading} ({file.name}, {file.made[:10]}):\n\n{table(group, file.systems)}")
            measures += [_measure(file, row) for row in group if row.system in TEAM and row.benchmark != ALL]
    return "\n\n".join(parts), measures


def _evaluations(folder: Path) -> Iterator[EvaluationFile]:
    """The run's evaluations; that of its stages only where there is no other one."""
    names = sorted(path.stem for path in folder.glob("*.json") if path.stem not in (STAGES, TRAINING))
    for name in names or [STAGES]:
        if (folder / f"{name}.json").is_file():
            yield EvaluationFile.read(folder / f"{name}.json")


def _is_shown(file: EvaluationFile, name: str, chosen: Path, last: bool) -> bool:
    """Whether a system's figures belong on this card: no cross-play, and no other checkpoint's models."""
    if file.cross_play and name in file.cross_play.systems:
        return False
    if name == "trained":  # measured on the live pair at the end of its run
        return last
    checkpoints = set(re.findall(r"checkpoint-\d+", " ".join(file.systems[name].models.values())))
    return checkpoints <= {chosen.name}


def _measure(file: EvaluationFile, row: ResultRow) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        dataset_type=re.sub(r"[^\w.-]+", "-", Path(row.benchmark).name),
        dataset_name=file.benchmarks[row.benchmark].title,
        metric_type="accuracy",
        metric_name=f"accuracy, {row.decoding}",
        metric_value=round(row.measures["accuracy"], 4),
    )


def _on_hub(model: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", model)) and not Path(model).exists()
