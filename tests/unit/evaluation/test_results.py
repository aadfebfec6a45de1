"""The results file and its tables: rows added and replaced, means and scores beside them, nothing that ends its
cell."""

import asyncio
import json
import re
from types import SimpleNamespace

import pytest

from longshort import __version__
from longshort.dialogue.protocols import LongShort
from longshort.evaluation.benchmarks import LoadedBenchmark
from longshort.evaluation.command import evaluate_recipe, measure, measured_before
from longshort.evaluation.records import DescribedBenchmark, DescribedSystem, EvaluationFile, ResultRow
from longshort.evaluation.results import (
    add_aes,
    compared,
    figures,
    measured,
    open_results,
    overall_rows,
    with_greedy,
    write_results,
)
from longshort.evaluation.runner import Evaluation
from longshort.evaluation.tables import markdown, markdown_table, results_table, titles
from longshort.evaluation.tasks import Prepared
from longshort.grading.pool import Verdict
from longshort.miniature.tokenizer import build_tokenizer
from longshort.miniature.world import make_problems, products
from longshort.recipe.schema import parse
from longshort.types import LONG, ROLES, SHORT, Completion, Episode, LongShortError, Problem, Turn

FACTS = {"title": "Sums", "source": "sums.jsonl", "problems": 4, "golds_parsed": 4, "golds_verified": 4}
PAIR = {"title": "pair", "models": {"long": "l", "short": "s"}, "protocol": "LongShort"}
MEASURES = {
    "n": 4, "samples": 2, "accuracy": 0.75, "stderr": 0.1, "interval": [0.4, 0.9], "pass@1": 0.75, "pass@2": 1.0,
    "tokens": 30.0, "tokens/long": 20.0, "tokens/short": 10.0, "characters": 90.0, "cost": 22.5, "turns": 2.5,
    "hand_back_rate": 0.25, "format": 0.5, "rethinking": 1.25,
}  # fmt: skip
BASE = {
    "n": 4, "samples": 2, "accuracy": 0.5, "stderr": 0.2, "interval": [0.2, 0.8], "pass@1": 0.5, "pass@2": 0.75,
    "tokens": 60.0, "tokens/long": 60.0, "characters": 180.0, "cost": 60.0, "turns": 1.0,
    "hand_back_rate": 0.0, "format": 1.0, "rethinking": 3.0,
}  # fmt: skip


def row(system="pair", benchmark="sums", decoding="sampled", **measures) -> ResultRow:
    return ResultRow(system=system, benchmark=benchmark, decoding=decoding, **measures)


def add(file, title, benchmark, row):
    file.add(DescribedSystem(**PAIR | {"title": title}), DescribedBenchmark(**FACTS), row)


def test_a_file_is_added_to_and_a_row_of_the_same_name_is_replaced(tmp_path):
    first = open_results(tmp_path, "results", {"temperature": 1.0}, fresh=True)
    add(first, "pair", "sums", row("step-1", **MEASURES | {"accuracy": 0.1}))
    add(first, "pair", "sums", row("step-1", decoding="greedy", **MEASURES | {"accuracy": 0.2}))
    write_results(first, tmp_path)
    again = open_results(tmp_path, "results", {"temperature": 0.5}, fresh=False)
    add(again, "again", "sums", row("step-1", accuracy=0.3))
    add(again, "again", "products", row("step-1", "products", accuracy=0.4))
    rows = [(each.benchmark, each.decoding, each.get("accuracy")) for each in again.results]
    assert rows == [("sums", "greedy", 0.2), ("sums", "sampled", 0.3), ("products", "sampled", 0.4)]
    assert {name: system.title for name, system in again.systems.items()} == {"step-1": "again"}
    assert again.settings == {"temperature": 0.5}
    values = figures(again, "step-1", "sums")
    assert (values["accuracy"], values["accuracy_greedy"]) == (0.3, 0.2)
    assert figures(again, "step-1", "none") is None
    assert figures(again, "step-2", "sums") is None
    assert open_results(tmp_path, "results", {}, fresh=True).results == []


def test_the_file_says_what_made_it(tmp_path):
    file = open_results(tmp_path / "new", "results", {"seed": 3}, fresh=True)
    add(file, "pair", "sums", row(**MEASURES))
    written = write_results(file, tmp_path / "new")
    path = tmp_path / "new" / "results.json"
    content = json.loads(path.read_text())
    assert content == written
    assert list(content) == [
        "name", "made", "longshort", "versions", "settings", "faults", "benchmarks", "systems", "results",
        "comparisons", "cross_play",
    ]  # fmt: skip
    assert content["longshort"] == __version__
    assert content["versions"].keys() >= {"python", "torch", "transformers", "ray"}
    assert content["settings"] == {"seed": 3}
    assert content["made"].endswith("+00:00")
    assert (content["cross_play"], content["faults"]) == (None, [])
    assert (content["benchmarks"], content["systems"]) == ({"sums": FACTS}, {"pair": PAIR})
    assert content["results"] == [{"system": "pair", "benchmark": "sums", "decoding": "sampled", **MEASURES}]
    assert list(content["results"][0])[:6] == ["system", "benchmark", "decoding", "n", "samples", "accuracy"]
    assert sorted(each.name for each in path.parent.iterdir()) == ["results.json", "results.md"]
    assert EvaluationFile.read(path).model_dump(mode="json") == content


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"systems"', "Invalid JSON"),
        ('{"pair": {}}', "systems: Field required"),
        ("[]", "should be an object"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, text, says):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(LongShortError, match=rf"results.json cannot be read \(.*{says}.*\); remove it"):
        open_results(tmp_path, "results", {}, fresh=False)
    assert open_results(tmp_path, "results", {}, fresh=True).systems == {}


def test_the_mean_over_benchmarks_is_for_systems_that_were_evaluated_on_all():
    rows = [row(**MEASURES), row(benchmark="products", **BASE), row("other", **BASE), row(decoding="greedy", **BASE)]
    (mean,) = overall_rows(rows)
    assert mean.key == ("pair", "all", "sampled")
    assert [mean.get(name) for name in ("accuracy", "tokens", "cost")] == [0.625, 45.0, 41.25]
    assert overall_rows([row(**MEASURES), row("other", **BASE)]) == []


def test_aes_is_against_the_base_of_the_same_benchmark_and_decoding():
    rows = [
        row(**MEASURES),
        row("base", **BASE),
        row("pair", "products", **MEASURES),
        row("base", "products", "greedy", **BASE),
    ]
    assert add_aes(rows, "base") == []
    # half the tokens and 1.5 times the accuracy: 0.5 + 3 * 0.5; characters the same; cost 22.5 of 60
    assert [rows[0].get(name) for name in ("aes", "aes_characters", "aes_cost")] == [2.0, 2.0, 0.625 + 1.5]
    assert [each.get("aes") for each in rows[1:]] == [0.0, None, 0.0]


def test_a_base_that_solves_nothing_is_one_fault_per_benchmark_and_no_score():
    rows = [row(**MEASURES), row("other", **MEASURES), row("base", **BASE | {"accuracy": 0.0})]
    (fault,) = add_aes(rows, "base")
    assert fault.startswith("sums, sampled: AES divides by")
    assert not any("aes" in each.measures for each in rows)


def test_greedy_figures_stand_beside_the_sampled_ones_or_alone():
    sampled, greedy = row(**MEASURES), row(decoding="greedy", **BASE)
    values = with_greedy([greedy, sampled])
    names = ("accuracy", "accuracy_greedy", "interval_greedy", "cost_greedy")
    assert [values[name] for name in names] == [0.75, 0.5, [0.2, 0.8], 60.0]
    assert values["decoding"] == "sampled"
    assert not {"system", "tokens/long_greedy"} & values.keys()
    assert with_greedy([greedy])["accuracy"] == with_greedy([greedy])["accuracy_greedy"] == 0.5


def test_a_measure_that_is_no_finite_number_is_none():
    odd = row(accuracy=float("nan"), tokens=10**400, cost="3", interval=[0.5, 0.4])
    assert [odd.get(name) for name in ("accuracy", "tokens", "cost", "format")] == [None] * 4
    assert odd.interval is None
    assert row(interval=[0, 1]).interval == (0.0, 1.0)
    assert row(**{"stop/eos": 0.5, "stop/length": 1}).named("stop/") == {"eos": 0.5, "length": 1.0}


def episode(problem, *stops):
    roles = [ROLES[i % 2] for i in range(len(stops))]
    completion = dict(token_ids=(1, 2), logprobs=(0.0, 0.0), text="x", version=0)
    turns = tuple(
        Turn(role=role, prompt_ids=(0,), completion=Completion(**completion, stop=stop))
        for role, stop in zip(roles, stops, strict=True)
    )
    return Episode(problem=problem, turns=turns, stop="answered")


def test_on_the_miniature_the_hand_backs_of_hard_problems_are_counted_by_themselves():
    problems = make_problems("dev", 40, 0)
    hard = [problem for problem in problems if (products(problem) or 0) > 1][:2]
    easy = next(problem for problem in problems if products(problem) == 1)
    back, straight = ("</think>", "</rethink>", "</think>", "</answer>"), ("</think>", "</answer>")
    episodes = (episode(hard[0], *back), episode(hard[1], *straight), episode(easy, *straight))
    protocol = LongShort(turn_tokens={LONG: 9, SHORT: 9}, episode_tokens=60)
    evaluation = Evaluation(episodes=episodes, correct=(True, False, True), num_samples=1)
    found = measured(evaluation, {"match": 2, "mismatch": 1}, protocol, {LONG: 1.0, SHORT: 0.5})
    assert (found["hand_back_rate"], found["hand_back_rate_hard"]) == (pytest.approx(1 / 3), 0.5)
    assert found["outcomes"] == {"match": 2, "mismatch": 1}
    elsewhere = Problem(id="mini-1", question="How many?", answer="1")  # an id says nothing about the world
    evaluation = Evaluation(episodes=(episode(elsewhere, *straight),), correct=(True,), num_samples=1)
    assert "hand_back_rate_hard" not in measured(evaluation, {}, protocol, {LONG: 1.0, SHORT: 0.5})


def test_a_system_is_compared_in_accuracy_tokens_and_cost():
    problems = [Problem(id=str(i), question="?", answer="1") for i in range(2)]
    episodes = tuple(episode(problem, "</think>", "</answer>") for problem in problems)
    evaluation = Evaluation(episodes=episodes, correct=(True, False), num_samples=1)
    rows = compared(("pair", "sums", "greedy"), evaluation, "same", evaluation, {LONG: 1.0, SHORT: 0.5})
    assert [each.metric for each in rows] == ["accuracy", "tokens", "cost"]
    assert rows[0].model_dump(mode="json") == {
        "benchmark": "sums",
        "decoding": "greedy",
        "system": "pair",
        "base": "same",
        "metric": "accuracy",
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p": 1.0,
    }


# Tables


def content(*rows: ResultRow, **changes) -> EvaluationFile:
    file = {
        "name": "results",
        "longshort": "0.1",
        "versions": {"python": "3.11", "torch": "2.0"},
        "faults": ["math5000 is\nnot known"],
        "benchmarks": {"sums": FACTS},
        "systems": {"pair": PAIR | {"title": "pair | after\nRL"}, "base": PAIR | {"title": "single"}},
        "results": [each.model_dump() for each in rows or (row(**MEASURES, aes=2.0), row("base", **BASE, aes=0.0))],
        "comparisons": [
            {"benchmark": "a|b", "decoding": "sampled", "system": "pair", "base": "base", "metric": "accuracy"}
            | {"difference": 0.25, "interval": [-0.1, 0.5], "p": 0.04}
        ],
    }
    return EvaluationFile.model_validate(file | changes)


def cells_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table's lines, the one of dashes left out; an escaped | ends none."""
    lines = [line.replace("\\|", "¦").strip("|").split("|") for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line] for line in [lines[0], *lines[2:]]]


def test_the_markdown_in_full():
    head, sums, table, against, differences, fault, versions = markdown(content()).split("\n\n")
    assert (head, sums, against) == (
        "## results",
        "### Sums, sampled, 4 problems × 2",
        "### Against base, paired bootstrap",
    )
    assert cells_of(table) == [
        [
            "system",
            "accuracy ± s.e. [95 %]",
            "pass@2",
            "tokens",
            "long + short",
            "characters",
            "cost",
            "messages",
            "hand-back",
            "format",
        ]
        + ["rethinking", "AES"],
        [
            "pair ¦ after RL",
            "0.750 ± 0.100 [0.400, 0.900]",
            "1.000",
            "30.0",
            "20.0 + 10.0",
            "90.0",
            "22.5",
            "2.50",
            "0.25",
            "0.50",
        ]
        + ["1.25", "+2.00"],
        [
            "single",
            "0.500 ± 0.200 [0.200, 0.800]",
            "0.750",
            "60.0",
            "60.0",
            "180.0",
            "60.0",
            "1.00",
            "0.00",
            "1.00",
            "3.00",
            "+0.00",
        ],
    ]
    assert cells_of(differences) == [
        ["benchmark", "decoding", "system", "metric", "difference", "95 %", "p"],
        ["a¦b", "sampled", "pair", "accuracy", "+0.250", "[-0.100, +0.500]", "0.0400"],
    ]
    assert (fault, versions) == ("- math5000 is not known", "longshort 0.1, python 3.11, torch 2.0")


def test_rows_that_lack_a_measure_have_a_dash_there():
    """A stage measured with 1 sample beside one with 2, a system without a score, a mean over benchmarks."""
    once = {key: value for key, value in MEASURES.items() if key != "pass@2"}
    mean = {"accuracy": 0.6, "stderr": 0.1, "interval": [0.5, 0.7], "tokens": 40.0, "characters": 120.0, "cost": 30.0}
    file = content(row("base", **once), row(**MEASURES, aes=2.0), row(benchmark="all", **mean))
    _, _, table, title, means, *_ = markdown(file).split("\n\n")
    assert [line[2] for line in cells_of(table)] == ["pass@2", "–", "1.000"]
    assert [line[-1] for line in cells_of(table)] == ["AES", "–", "+2.00"]
    assert title == "### mean over benchmarks, sampled"
    assert cells_of(means)[1][1:] == ["0.600 ± 0.100 [0.500, 0.700]", "40.0", "–", "120.0", "30.0", "–", "–", "–", "–"]


def test_cross_play_is_a_matrix_of_long_models_down_and_short_models_across():
    names = ["cold_start", "runs/x/checkpoint-80"]
    played = {
        "long@cold_start+short@cold_start": (0.5, 10.0),
        "long@cold_start+short@checkpoint-80": (0.6, 11.0),
        "long@checkpoint-80+short@cold_start": (0.7, 12.0),
    }
    rows = [row(name, **MEASURES | {"accuracy": accuracy, "cost": cost}) for name, (accuracy, cost) in played.items()]
    rows.append(row("long@cold_start+short@cold_start", decoding="greedy", **MEASURES))
    file = content(*rows, systems=dict.fromkeys(played, PAIR), cross_play={"long": names, "short": names})
    _, _, table = markdown(file).partition("### Cross-play: accuracy · cost\n\n")
    assert cells_of(table.partition("\n\n")[0]) == [
        ["sums: long ↓ short →", "cold_start", "runs/x/checkpoint-80"],
        ["cold_start", "0.500 · 10.0", "0.600 · 11.0"],
        ["runs/x/checkpoint-80", "0.700 · 12.0", "–"],
    ]


def test_systems_of_one_title_are_named_too():
    names = {"a": "pair", "b": "pair", "c": "other"}
    assert titles({name: DescribedSystem(title=title) for name, title in names.items()}) == {
        "a": "pair (a)",
        "b": "pair (b)",
        "c": "other",
    }


def test_no_text_ends_its_cell_or_row():
    text = markdown_table(["name", "b|c"], [["a\nb", "1"]])
    assert text.splitlines() == ["| name | b\\|c |", "| :--- | ---: |", "| a b  |    1 |"]


def test_the_terminal_table_in_full():
    pair = with_greedy([row(**MEASURES, aes=2.0), row(decoding="greedy", **BASE)])
    head, _, *lines = results_table("Sums", {"pair": pair, "single": BASE}).strip().splitlines()
    assert [re.split(r"\s{2,}", line.strip()) for line in (head, *lines)] == [
        ["Sums", "accuracy [95 %]", "greedy", "tokens", "cost", "hand-back", "format", "AES"],
        ["pair", "0.750 [0.400, 0.900]", "0.500", "30.0", "22.5", "0.25", "0.50", "+2.00"],
        ["single", "0.500 [0.200, 0.800]", "–", "60.0", "60.0", "0.00", "1.00", "–"],
    ]
    assert "AES" not in results_table("Sums", {"single": BASE})


# A pair in training


class Engine:
    """Says one thing, and closes its turn with the first tag it may."""

    context = 500

    def __init__(self, role, text):
        self.tokenizer, self.text, self.version, self.asked = build_tokenizer(role), text, 3, 0

    async def generate(self, prompt_ids, sampling):
        self.asked += 1
        ids = (*self.tokenizer.encode(self.text, add_special_tokens=False), sampling.stop_token_ids[0])
        return Completion(
            token_ids=ids, logprobs=(0.0,) * len(ids), text=self.text, stop=sampling.stop[0], version=self.version
        )


class Pool:
    async def grade(self, gold, text):
        right = f"{{{gold}}}" in text
        return Verdict(correct=right, reason="match" if right else "mismatch")


def live(text):
    """A pair whose short model always answers `text`, with no process behind it."""
    protocol = LongShort(
        turn_tokens={LONG: 50, SHORT: 50}, episode_tokens=100, tags="special", instructions={LONG: "", SHORT: ""}
    )
    policies = {LONG: Engine(LONG, "a"), SHORT: Engine(SHORT, text)}
    return SimpleNamespace(pool=Pool(), models={LONG: "l", SHORT: "s"}, protocol=protocol, policies=policies)


def prepared(name, *answers):
    problems = tuple(Problem(id=str(i), question="?", answer=answer) for i, answer in enumerate(answers))
    loaded = LoadedBenchmark(name=name, title=name, source=name, problems=problems, num_samples=2)
    return Prepared(loaded=loaded, described=DescribedBenchmark(title=name, source=name, problems=len(problems)))


def test_an_evaluation_in_training_adds_a_system_and_replaces_an_older_one_of_its_step(tmp_path):
    config = parse({"output_dir": str(tmp_path)})
    benchmarks = [prepared("sums", "1", "2"), prepared("products", "1")]

    def step(name, text):
        options = {"evaluation": "training", "benchmarks": benchmarks, "greedy": False}
        return asyncio.run(measure(config, live(text), name, title=f"pair, {name}", **options))

    first = step("step-2", "\\boxed{1}")
    assert (first["accuracy"], first["n"], first["samples"], first["decoding"]) == (
        0.5,
        2,
        2,
        "sampled",
    ) and "accuracy_greedy" not in first
    step("step-20", "\\boxed{2}")
    step("step-2", "\\boxed{9}")  # the run was resumed from an older checkpoint
    content = json.loads((tmp_path / "eval" / "training.json").read_text())
    assert [(each["system"], each["benchmark"], each["accuracy"]) for each in content["results"]] == [
        ("step-20", "sums", 0.5), ("step-20", "products", 0.0), ("step-2", "sums", 0.0), ("step-2", "products", 0.0),
    ]  # fmt: skip
    assert content["systems"]["step-2"] == {
        "title": "pair, step-2",
        "models": {"long": "l", "short": "s"},
        "protocol": "LongShort",
    }
    files = {path.name: path.read_text() for path in (tmp_path / "eval" / "training").glob("*.jsonl")}
    assert files.keys() == {
        f"{step}.{benchmark}.sampled.jsonl" for step in ("step-2", "step-20") for benchmark in ("sums", "products")
    }
    assert (
        files["step-2.sums.sampled.jsonl"].count("boxed{9}") == 4
        and files["step-20.sums.sampled.jsonl"].count("boxed{2}") == 4
    )


def test_a_stage_is_measured_once_for_the_benchmark_that_the_recipe_names_first(tmp_path):
    def recipe(*benchmarks):
        return parse({"output_dir": str(tmp_path), "eval": {"benchmarks": [*benchmarks]}})

    sums, named = recipe("sums"), recipe({"name": "sums", "num_samples": 2})
    assert measured_before(sums, "cold_start") is None
    found = asyncio.run(measure(sums, live("\\boxed{1}"), "cold_start", benchmarks=[prepared("sums", "1", "2")]))
    assert found["accuracy"] == found["accuracy_greedy"] == 0.5
    assert measured_before(sums, "cold_start") == measured_before(named, "cold_start") == found
    assert measured_before(sums, "trained") is None
    assert (
        measured_before(recipe("products", "sums"), "cold_start") is None
        and measured_before(recipe(), "cold_start") is None
    )


@pytest.mark.parametrize("name", ["stages", "training", "a/b", ".", ""])
def test_an_evaluations_name_is_a_files_and_not_the_runs_own(tmp_path, name):
    with pytest.raises(LongShortError, match=r"becomes a file's name; .* \(stages and training are the run's own\)"):
        evaluate_recipe(parse({"output_dir": str(tmp_path)}), name=name)
