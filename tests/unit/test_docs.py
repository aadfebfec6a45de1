"""The documentation's code is run as it stands, and its links lead somewhere."""

import asyncio
import re
from types import SimpleNamespace

import pytest
import torch

from longshort import data
from longshort.coldstart import partition, rewriting
from longshort.dialogue import protocols, rewards
from longshort.learning import advantages, losses
from longshort.miniature.tokenizer import build_tokenizer
from longshort.types import Completion, Episode, Group, Problem, Reward, Turn
from tests.support import ROOT

PROBLEM = Problem(id="p", question="What is 6 times 7?", answer="42")


def run_block(section: str) -> dict:
    """Execute the Python block under `## section` of docs/extending.md; return its names."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8").split(f"## {section}\n")[1]
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    return names


@pytest.fixture
def table(monkeypatch):
    """Copy a table into its module, so that a block's line in it is gone after the test; return the copy."""

    def copy(module, name):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
        return getattr(module, name)

    return copy


def episode(text: str, tokens: int) -> Episode:
    completion = Completion(token_ids=(1,) * tokens, logprobs=(0.0,) * tokens, text=text, stop="</answer>", version=0)
    turn = Turn(role="short", prompt_ids=(0,), completion=completion)
    return Episode(problem=PROBLEM, turns=(turn,), stop="answered")


def test_a_protocol_of_ones_own_takes_turns(table):
    known = table(protocols, "PROTOCOLS")
    run_block("A protocol")
    protocol = known["one_exchange"](turn_tokens={"long": 9, "short": 9}, episode_tokens=20, tags="special")
    tokenizers = {role: build_tokenizer(role) for role in ("long", "short")}
    thought = ("long", "a", "</think>")
    for closing, stop in (("</answer>", "answered"), ("</rethink>", "malformed")):
        messages = [thought, ("short", "b", closing)]
        assert protocols.demonstration(PROBLEM, messages, protocol, tokenizers).stop == stop
    assert protocol.stops("short", tokenizers["short"])[0] == ("</answer>",)


def test_a_reward_of_ones_own_scores_episodes(table):
    known = table(rewards, "REWARDS")
    run_block("A reward")
    (only,) = known["short_and_right"](None, {}, None, None)(PROBLEM, [episode("it is 42", 10)], 0.5)
    assert only.totals == pytest.approx({"long": 0.9, "short": 0.9})


def test_a_length_term_of_ones_own_compares_the_episodes_of_a_problem(table):
    known = table(rewards, "LENGTH_TERMS")
    run_block("A length term")
    assert known["cheaper_than_average"]([True, False, True], [1.0, 1.0, 7.0], 0.0) == [1.0, 0.0, 0.0]


def test_an_advantage_of_ones_own_scores_a_group(table):
    known = table(advantages, "ADVANTAGES")
    run_block("An advantage")
    group = Group(problem=PROBLEM, episodes=(episode("", 1),), rewards=(Reward(totals={"long": 1.0}, terms={}),))
    assert known["few_turns"](group, "long") == [0.9]


def test_a_loss_of_ones_own_has_the_policy_gradient(table):
    known = table(losses, "LOSSES")
    run_block("A loss")
    loss = known["reinforce"]
    logp = torch.tensor([-0.5, -2.0], requires_grad=True)
    per_token = loss.surrogate(torch.ones(2), logp, torch.tensor([2.0, -1.0]), *loss.bounds(0.2, 0.28))
    assert per_token.tolist() == [1.0, -2.0]
    assert loss.weights([2, 6], 100) == [0.125, 0.125]


def test_a_dataset_of_ones_own_is_read(table):
    table(data, "GENERATORS")
    run_block("A dataset")
    problems = data.load_problems("sums:test", limit=2)
    assert [(problem.question, problem.answer) for problem in problems] == [
        ("What is 500 plus 7?", "507"),
        ("What is 501 plus 7?", "508"),
    ]


def test_a_partition_rule_of_ones_own_is_a_line_in_the_table(table):
    known = table(partition, "PARTITIONS")
    run_block("A partition rule")
    assert known["above_average"]([0.0, 0.1, 0.5, 0.2], None, None) == [True, False, True, False]


def test_a_rewriter_of_ones_own_writes_the_short_messages(table):
    known = table(rewriting, "REWRITERS")
    run_block("A rewriter")
    thoughts = [SimpleNamespace(text="first\n"), SimpleNamespace(text="then 42\n")]
    messages = [SimpleNamespace(role="long", thoughts=[]), SimpleNamespace(role="short", thoughts=thoughts)]
    assert asyncio.run(known["last_lines"](SimpleNamespace(messages=messages), None)) == (["then 42"], 1)


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
