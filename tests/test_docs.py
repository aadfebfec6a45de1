"""The documentation's code is run as it stands, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def blocks(section):
    """The Python block under `## section` of docs/extending.md, executed; returns its names."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split(f"## {section}\n")[1]
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    return names


def test_a_protocol_of_ones_own_takes_turns(monkeypatch):
    from longshort.dialogue import protocols
    from longshort.miniature.tokenizer import build_tokenizer
    from longshort.types import Problem

    monkeypatch.setattr(protocols, "PROTOCOLS", dict(protocols.PROTOCOLS))
    protocol = blocks("A protocol")["OneExchange"](
        turn_tokens={"long": 9, "short": 9}, episode_tokens=20, tags="special"
    )
    assert "one_exchange" in protocols.PROTOCOLS
    tokenizers = {role: build_tokenizer(role) for role in ("long", "short")}
    problem, messages = (
        Problem(id="p", question="1+1?", answer="2"),
        [("long", "a", "</think>"), ("short", "b", "</answer>")],
    )
    assert protocols.demonstration(problem, messages, protocol, tokenizers).stop == "answered"
    assert (
        protocols.demonstration(problem, [messages[0], ("short", "b", "</rethink>")], protocol, tokenizers).stop
        == "malformed"
    )
    assert protocol.stops("short", tokenizers["short"])[0] == ("</answer>",)


def test_a_reward_of_ones_own_scores_episodes():
    from longshort.types import Completion, Episode, Problem, Turn

    reward = blocks("A reward")["short_and_right"]
    completion = Completion(token_ids=(1,) * 10, logprobs=(0.0,) * 10, text="it is 42", stop="</answer>", version=0)
    problem = Problem(id="p", question="?", answer="42")
    episode = Episode(
        problem=problem, turns=(Turn(role="short", prompt_ids=(0,), completion=completion),), stop="answered"
    )
    (only,) = reward(problem, [episode], 0.5)
    assert only.totals == pytest.approx({"long": 0.9, "short": 0.9})


def test_a_loss_of_ones_own_has_the_policy_gradient(monkeypatch):
    import torch

    from longshort.learning import losses

    monkeypatch.setattr(losses, "LOSSES", dict(losses.LOSSES))
    blocks("A loss")
    loss = losses.LOSSES["reinforce"]
    logp = torch.tensor([-0.5, -2.0], requires_grad=True)
    per_token = loss.surrogate(torch.ones(2), logp, torch.tensor([2.0, -1.0]), *loss.bounds(0.2, 0.28))
    assert per_token.tolist() == [1.0, -2.0] and loss.weights([2, 6], 100) == [0.125, 0.125]


def test_a_dataset_of_ones_own_is_read():
    (problem,) = blocks("A dataset")["problems"]
    assert (problem.question, problem.answer) == ("What is 7 times 6?", "42")


def test_a_partition_rule_of_ones_own_is_a_line_in_the_table(monkeypatch):
    from longshort.coldstart import partition

    monkeypatch.setattr(partition, "PARTITIONS", dict(partition.PARTITIONS))
    blocks("A partition rule")
    assert partition.PARTITIONS["above_average"]([0.0, 0.1, 0.5, 0.2], None, None) == [True, False, True, False]


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_every_recipe_is_one(recipe):
    from longshort.recipe.schema import load

    assert load(ROOT / "recipes" / recipe).output_dir.startswith("runs/")


def test_the_recipe_on_the_page_about_thoughts_is_one():
    import yaml

    from longshort.recipe.schema import parse

    text = (ROOT / "docs" / "thoughts.md").read_text(encoding="utf-8")
    found = parse(yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.S)[1]))
    assert found.coldstart.chunk.splitter == "instruct" and found.long.sft.lora.r == 32


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_every_path_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text)
    named = re.findall(r"`((?:longshort|recipes|launch|tests|docs)/[\w./-]+)`", text)
    missing = [
        name
        for name in [*links, *named]
        if not (ROOT / page).parent.joinpath(name).exists() and not (ROOT / name).exists()
    ]
    assert missing == []
