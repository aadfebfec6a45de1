"""A trained pair as a folder and as a Team: saved whole, refused when damaged, answering as its evaluation does."""

import asyncio
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from longshort.recipe.schema import dump
from longshort.runs import checkpoint
from longshort.team.conversation import ImpossibleQuery, Query
from longshort.team.folder import find_team, save_team
from longshort.team.team import Team
from longshort.trainer import LongShortTrainer
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import tiny_models

QUESTION = "Last digit of a: 7+b: 6?"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it: two models that close their turns, checkpoints, a recipe, an evaluation."""
    folder = tmp_path_factory.mktemp("team")
    models = tiny_models.make_speaking(folder / "models")
    config = tiny_models.config(folder, models)
    output_dir = Path(config.output_dir)
    output_dir.mkdir()
    for step in (1, 2):
        partial = checkpoint.begin(output_dir, step)
        for role in ROLES:
            shutil.copytree(models[role], partial / role)
        (partial / "state" / "optimizer.safetensors").write_bytes(b"moments")
        checkpoint.commit(
            partial, {"step": step, "versions": {LONG: step, SHORT: step}, "recipe": config.model_dump(mode="json")}
        )
    (output_dir / "recipe.yaml").write_text(dump(config))
    (output_dir / "eval").mkdir()
    (output_dir / "eval" / "results.json").write_text(json.dumps(evaluation()))
    return config


def evaluation():
    """A results file with the newest checkpoint's pair, an older one's, a single model and a cell of the cross-play."""

    def row(system, accuracy):
        names = {"system": system, "benchmark": "miniature:dev", "decoding": "sampled", "n": 8, "samples": 1}
        measures = {"accuracy": accuracy, "stderr": 0.1, "interval": [0.1, 0.9], "tokens": 20.0, "turns": 2.0}
        return names | measures | {"hand_back_rate": 0.5, "format": 1.0}

    models = {
        "pair": "run/checkpoint-2",
        "before": "run/checkpoint-1",
        "single_long": "models",
        "long@trained+short@trained": "models",
    }
    systems = {name: {"title": name, "models": {LONG: f"{folder}/long"}} for name, folder in models.items()}
    return {
        "name": "results",
        "made": "2026-01-31T10:00:00+00:00",
        "systems": systems,
        "benchmarks": {"miniature:dev": {"title": "miniature:dev"}},
        "cross_play": {"long": ["trained"], "short": ["trained"]},
        "results": [row(name, (2 + number) / 8) for number, name in enumerate(models)],
    }


@pytest.fixture(scope="module")
def folder(run):
    return LongShortTrainer(args=run).save_model()


def test_a_team_folder_holds_all_that_answering_needs(run, folder):
    assert folder == Path(run.output_dir).resolve() / "team"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "long",
        "manifest.json",
        "short",
        "team.yaml",
    ]
    weights = folder / "long" / "model.safetensors"
    assert weights.samefile(Path(run.output_dir) / "checkpoint-2" / "long" / "model.safetensors"), (
        "linked: it takes no room twice"
    )
    settings = yaml.safe_load((folder / "team.yaml").read_text())
    assert (
        settings["protocol"] == run.protocol.model_dump()
        and settings["long"]["turn_tokens"] == 32
        and "model" not in settings["long"]
    )
    found = find_team(folder)
    assert found.name == "run" and {role: model.folder for role, model in found.system.models.items()} == {
        role: str(folder / role) for role in ROLES
    }
    again = save_team(folder, run, Path(run.output_dir) / "checkpoint-1")
    assert json.loads((again / "manifest.json").read_text())["step"] == 1, "an older team is replaced"
    save_team(folder, run, Path(run.output_dir) / "checkpoint-2")
    assert sorted(path.name for path in folder.parent.glob(".*")) == []


def test_what_the_protocol_says_is_written_out(run, tmp_path):
    """None in a recipe means longshort's own text; another version may change it, and the team knows this one."""
    engine = run.long.engine.model_copy(update={"extra": {"download_dir": "/data/x", "seed": 3}})
    section = run.long.model_copy(update={"instructions": None, "engine": engine})
    config = run.model_copy(
        update={"long": section, "protocol": run.protocol.model_copy(update={"final_notice": None})}
    )
    settings = yaml.safe_load(
        (save_team(tmp_path / "team", config, Path(run.output_dir) / "checkpoint-2") / "team.yaml").read_text()
    )
    assert settings["long"]["instructions"].startswith("You are the long thinker.")
    assert settings["protocol"]["final_notice"].startswith("\nThis is the last turn")
    assert settings["long"]["engine"]["extra"] == {"seed": 3}, "nobody learns where files lie on this machine"


def test_the_card_is_one_that_hubs_read_and_whose_examples_run(folder):
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "longshort" and "reasoning" in card.data.tags and card.data.license == "unknown"
    assert [(found.dataset_name, found.metric_name, found.metric_value) for found in card.data.eval_results] == [
        ("miniature:dev", "accuracy, sampled", 0.25)
    ]
    assert "| pair " in card.text and "| single_long " in card.text, "its own figures, and what it is compared with"
    assert "before" not in card.text and "+short@" not in card.text, "no other checkpoint's, no cross-play"
    assert str(folder.parent) not in card.text and "tmp" not in card.text, "nobody learns where it was made"
    examples = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert "Team.from_pretrained" in examples[0] and len(examples) == 3
    for role, example in zip(ROLES, examples[1:], strict=True):
        said = []
        exec(example.replace(f'folder = "{role}"', f"folder = {str(folder / role)!r}"), {"print": said.append})
        assert said and said[0]


def test_settings_and_card_may_be_edited_and_models_may_not(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "team")
    (copy / "README.md").write_text("mine")
    (copy / "team.yaml").write_text((copy / "team.yaml").read_text().replace("max_exchanges: 3", "max_exchanges: 7"))
    found = find_team(copy, ["long.engine.num_gpus=1"], {"max_num_seqs": 4})
    assert found.system.protocol.max_exchanges == 7
    assert (
        found.config.long.engine.num_gpus,
        found.config.short.engine.num_gpus,
        found.config.short.engine.max_num_seqs,
    ) == (1, 0, 4)


def test_a_damaged_or_foreign_folder_is_refused_by_name(folder, tmp_path):
    def damaged(name, change):
        copy = shutil.copytree(folder, tmp_path / name)
        change(copy)
        with pytest.raises(LongShortError) as found:
            Team.from_pretrained(copy)
        return str(found.value)

    def flip(copy):
        path = copy / "short" / "model.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    assert "short/model.safetensors is altered (its sha256 differs); save the team again" in damaged("flipped", flip)
    assert "long/tokenizer.json is missing" in damaged(
        "missing", lambda copy: (copy / "long" / "tokenizer.json").unlink()
    )
    assert "it has no manifest.json" in damaged("bare", lambda copy: (copy / "manifest.json").unlink())
    assert "team.yaml: unknown key 'protocol.exchanges'" in damaged(
        "key", lambda copy: (copy / "team.yaml").write_text("protocol: {exchanges: 3}")
    )
    assert "is a mapping of settings" in damaged("list", lambda copy: (copy / "team.yaml").write_text("- 1"))
    foreign = json.dumps({"format": "other-1", "files": {}})
    assert "format 'other-1', expected 'longshort-team-1'" in damaged(
        "foreign", lambda copy: (copy / "manifest.json").write_text(foreign)
    )
    for source, what in (
        (tmp_path / "nowhere", "does not exist; name a team folder"),
        (tmp_path, "is no team: it has no team.yaml"),
    ):
        with pytest.raises(LongShortError, match=re.escape(what)):
            Team.from_pretrained(source)


def test_a_team_is_found_in_a_checkpoint_a_run_and_a_recipe(run, folder):
    output_dir = Path(run.output_dir)
    newest = {role: str(output_dir / "checkpoint-2" / role) for role in ROLES}
    for source in (output_dir / "checkpoint-2", output_dir, output_dir / "recipe.yaml"):
        found = find_team(source)
        assert {role: model.folder for role, model in found.system.models.items()} == newest and found.name == "run"
    moved = shutil.copytree(output_dir, output_dir.with_name("moved"))
    assert find_team(moved).system.models[LONG].folder == str(moved / "checkpoint-2" / "long"), "a run may be moved"
    for old in moved.glob("checkpoint-*"):
        shutil.rmtree(old)
    assert find_team(moved).system.models[LONG].folder == str(moved / "team" / "long"), "what is left of it"


def test_what_cannot_be_saved_is_refused(run, tmp_path):
    with pytest.raises(LongShortError, match=r"nothing to save: .* holds no checkpoint yet"):
        LongShortTrainer(args=run.model_copy(update={"output_dir": str(tmp_path / "new")})).save_model()
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(LongShortError, match="exists and is no team folder"):
        LongShortTrainer(args=run).save_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_protocol_of_ones_own_has_no_team_folder(run):
    class Mine:
        roles = ROLES

    with pytest.raises(LongShortError, match=r"a recipe can name, not Mine; the models are in .*checkpoint-2"):
        LongShortTrainer(args=run, protocol=Mine()).save_model()


def test_what_a_team_cannot_do_is_said_before_engines_start(folder):
    team = Team.from_pretrained(folder)
    assert team.capacity == 48
    for field, settings in (("max_tokens", {"max_tokens": 256}), ("long_token_budget", {"long_token_budget": 300})):
        with pytest.raises(
            ImpossibleQuery, match=f"^{field} is {settings[field]}, but the long model's context holds 256 tokens"
        ):
            team.protocol_for(Query(question=QUESTION, **settings))
    alone = Team.from_pretrained(folder, overrides=["protocol.name=solo", "long.instructions="])
    with pytest.raises(ImpossibleQuery, match="mode is 'short', but this team has one model"):
        alone.protocol_for(Query(question=QUESTION, mode="short"))
    with pytest.raises(LongShortError, match="has not been started"):
        asyncio.run(team.ask(Query(question=QUESTION)))
