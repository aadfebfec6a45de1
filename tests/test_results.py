"""The results file and its tables: rows added and replaced, means and scores beside them, nothing that ends its cell."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from longshort import __version__
from longshort.dialogue.grading import Verdict
from longshort.dialogue.protocols import LongShort
from longshort.evaluation.benchmarks import GoldCheck, LoadedBenchmark
from longshort.evaluation.command import evaluate_recipe, measure, measured_before
from longshort.evaluation.results import Results, add_aes, add_overall, compared, measured, read_results, with_greedy
from longshort.evaluation.runner import Evaluation
from longshort.evaluation.tables import markdown, results_table, titles
from longshort.evaluation.tasks import Prepared
from longshort.miniature.tokenizer import build_tokenizer
from longshort.miniature.world import hard_parts, make_problems
from longshort.recipe.schema import parse
from longshort.types import LONG, ROLES, SHORT, Completion, Episode, LongShortError, Problem, Turn

FACTS = {"title": "Sums", "source": "sums.jsonl", "problems": 4, "golds_parsed": 4, "golds_verified": 4}
PAIR = {"title": "pair", "models": {"long": "l", "short": "s"}, "protocol": "LongShort"}
MEASURES = {
    "n": 4, "samples": 2, "accuracy": 0.75, "stderr": 0.1, "interval": [0.4, 0.9], "pass@1": 0.75, "pass@2": 1.0, "tokens": 30.0,
    "tokens/long": 20.0, "tokens/short": 10.0, "characters": 90.0, "cost": 22.5, "turns": 2.5, "hand_back_rate": 0.25, "format": 0.5,
    "rethinking": 1.25,
}  # fmt: skip
BASE = {
    "n": 4, "samples": 2, "accuracy": 0.5, "stderr": 0.2, "interval": [0.2, 0.8], "pass@1": 0.5, "pass@2": 0.75, "tokens": 60.0,
    "tokens/long": 60.0, "characters": 180.0, "cost": 60.0, "turns": 1.0, "hand_back_rate": 0.0, "format": 1.0, "rethinking": 3.0,
}  # fmt: skip


def results(folder, name="results", *, fresh=True, **settings) -> Results:
    return Results(folder, name, settings, fresh=fresh)


def row(system="pair", benchmark="sums", decoding="sampled", **measures):
    return {"system": system, "benchmark": benchmark, "decoding": decoding, **measures}


def test_a_file_is_added_to_and_a_row_of_the_same_name_is_replaced(tmp_path):
    first = results(tmp_path, temperature=1.0)
    first.add("step-1", PAIR, "sums", FACTS, "sampled", MEASURES | {"accuracy": 0.1})
    first.add("step-1", PAIR, "sums", FACTS, "greedy", MEASURES | {"accuracy": 0.2})
    first.write()
    again = results(tmp_path, fresh=False, temperature=0.5)
    again.add("step-1", PAIR | {"title": "again"}, "sums", FACTS, "sampled", {"accuracy": 0.3})
    again.add("step-1", PAIR | {"title": "again"}, "products", FACTS, "sampled", {"accuracy": 0.4})
    rows = [(each["benchmark"], each["decoding"], each["accuracy"]) for each in again.content["results"]]
    assert rows == [("sums", "greedy", 0.2), ("sums", "sampled", 0.3), ("products", "sampled", 0.4)]
    assert again.content["systems"] == {"step-1": PAIR | {"title": "again"}} and again.content["settings"] == {
        "temperature": 0.5
    }
    assert again.block("step-1", "sums")["accuracy"] == 0.3 and again.block("step-1", "sums")["accuracy_greedy"] == 0.2
    assert again.block("step-1", "none") is None and again.block("step-2", "sums") is None
    assert results(tmp_path, fresh=True).content["results"] == []


def test_the_file_says_what_made_it(tmp_path):
    found = results(tmp_path / "new", seed=3)
    found.add("pair", PAIR, "sums", FACTS, "sampled", MEASURES)
    path = found.write()
    content = json.loads(path.read_text())
    assert list(content)[:4] == ["name", "made", "longshort", "versions"] and content["longshort"] == __version__
    assert content["versions"].keys() >= {"python", "torch", "transformers", "ray"} and content["settings"] == {
        "seed": 3
    }
    assert content["made"].endswith("+00:00") and content["cross_play"] is None and content["faults"] == []
    assert content["benchmarks"] == {"sums": FACTS} and content["results"] == [row(**MEASURES)]
    assert sorted(each.name for each in path.parent.iterdir()) == ["results.json", "results.md"]
    assert read_results(path) == content


@pytest.mark.parametrize(
    "text, says",
    [
        ('{"systems"', r"cannot be read \(.*\); remove it"),
        ('{"pair": {}}', "older version .* no `systems`"),
        ("[]", "no `systems`"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, text, says):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(LongShortError, match=rf"results.json .*{says}"):
        results(tmp_path, fresh=False)
    assert results(tmp_path, fresh=True).content["systems"] == {}


def test_the_mean_over_benchmarks_is_for_systems_that_have_been_through_all():
    rows = [row(**MEASURES), row(benchmark="products", **BASE), row("other", **BASE), row(decoding="greedy", **BASE)]
    add_overall(rows)
    assert [(each["system"], each["decoding"]) for each in rows[4:]] == [("pair", "sampled")]
    assert (rows[4]["benchmark"], rows[4]["accuracy"], rows[4]["tokens"], rows[4]["cost"]) == (
        "all",
        0.625,
        45.0,
        41.25,
    )
    alone = [row(**MEASURES), row("other", **BASE)]
    add_overall(alone)
    assert len(alone) == 2


def test_aes_is_against_the_base_of_the_same_benchmark_and_decoding():
    rows = [
        row(**MEASURES),
        row("base", **BASE),
        row("pair", "products", **MEASURES),
        row("base", "products", "greedy", **BASE),
    ]
    assert add_aes(rows, "base") == []
    # half the tokens and 1.5 times the accuracy: 0.5 + 3 * 0.5; characters the same; cost 22.5 of 60
    assert (rows[0]["aes"], rows[0]["aes_characters"], rows[0]["aes_cost"]) == (2.0, 2.0, 0.625 + 1.5)
    assert rows[1]["aes"] == 0.0 and "aes" not in rows[2] and rows[3]["aes"] == 0.0


def test_a_base_that_solves_nothing_is_one_fault_per_benchmark_and_no_score():
    rows = [row(**MEASURES), row("other", **MEASURES), row("base", **BASE | {"accuracy": 0.0})]
    (fault,) = add_aes(rows, "base")
    assert fault.startswith("sums, sampled: AES divides by") and not any("aes" in each for each in rows)


def test_greedy_figures_stand_beside_the_sampled_ones_or_alone():
    sampled, greedy = row(**MEASURES), row(decoding="greedy", **BASE)
    block = with_greedy([greedy, sampled])
    assert (block["accuracy"], block["accuracy_greedy"], block["interval_greedy"], block["cost_greedy"]) == (
        0.75,
        0.5,
        [0.2, 0.8],
        60.0,
    )
    assert "system" not in block and "tokens/long_greedy" not in block
    assert with_greedy([greedy])["accuracy"] == with_greedy([greedy])["accuracy_greedy"] == 0.5


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
    hard = [problem for problem in problems if hard_parts(problem) > 1][:2]
    easy = next(problem for problem in problems if hard_parts(problem) < 2)
    back, straight = ("</think>", "</rethink>", "</think>", "</answer>"), ("</think>", "</answer>")
    episodes = (episode(hard[0], *back), episode(hard[1], *straight), episode(easy, *straight))
    system = SimpleNamespace(protocol=LongShort(turn_tokens={LONG: 9, SHORT: 9}, episode_tokens=60))
    evaluation = Evaluation(episodes=episodes, correct=(True, False, True), num_samples=1)
    found = measured(evaluation, {"match": 2, "mismatch": 1}, system, {LONG: 1.0, SHORT: 0.5})
    assert (found["hand_back_rate"], found["hand_back_rate_hard"]) == (pytest.approx(1 / 3), 0.5)
    assert found["outcomes"] == {"match": 2, "mismatch": 1}
    rows = compared("pair", evaluation, "same", evaluation, {LONG: 1.0, SHORT: 0.5})
    assert [each["metric"] for each in rows] == ["accuracy", "tokens", "cost"]
    assert rows[0] == {
        "system": "pair",
        "base": "same",
        "metric": "accuracy",
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "p": 1.0,
    }


# Tables

CONTENT = {
    "name": "results",
    "longshort": "0.1",
    "versions": {"python": "3.11", "torch": "2.0"},
    "faults": ["math5000 is\nnot known"],
    "benchmarks": {"sums": FACTS},
    "systems": {"pair": PAIR | {"title": "pair | after\nRL"}, "base": PAIR | {"title": "single"}},
    "results": [row(**MEASURES, aes=2.0), row("base", **BASE, aes=0.0)],
    "comparisons": [
        row(benchmark="a|b", base="base", metric="accuracy", difference=0.25, interval=[-0.1, 0.5], p=0.04)
    ],
    "cross_play": None,
}


def cells_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table's lines, the one of dashes left out; an escaped | ends none."""
    lines = [line.replace("\\|", "¦").strip("|").split("|") for line in table.strip().splitlines()]
    return [[cell.strip() for cell in line] for line in [lines[0], *lines[2:]]]


def test_the_markdown_in_full():
    head, sums, table, against, differences, fault, versions = markdown(CONTENT).split("\n\n")
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
    content = CONTENT | {"results": [row("base", **once), row(**MEASURES, aes=2.0), row(benchmark="all", **mean)]}
    _, _, table, title, means, *_ = markdown(content).split("\n\n")
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
    content = CONTENT | {
        "systems": dict.fromkeys(played, PAIR),
        "results": rows,
        "cross_play": {"long": names, "short": names},
    }
    _, _, table = markdown(content).partition("### Cross-play: accuracy · cost\n\n")
    assert cells_of(table.partition("\n\n")[0]) == [
        ["sums: long ↓ short →", "cold_start", "runs/x/checkpoint-80"],
        ["cold_start", "0.500 · 10.0", "0.600 · 11.0"],
        ["runs/x/checkpoint-80", "0.700 · 12.0", "–"],
    ]


def test_systems_of_one_title_are_told_apart():
    systems = {"a": PAIR, "b": PAIR, "c": PAIR | {"title": "other"}}
    assert titles(systems) == {"a": "pair (a)", "b": "pair (b)", "c": "other"}


def test_the_terminal_table_in_full():
    pair = with_greedy([row(**MEASURES, aes=2.0), row(decoding="greedy", **BASE)])
    assert results_table("Sums", {"pair": pair, "single": BASE}).splitlines() == [
        "",
        "Sums         accuracy [95 %]  greedy  tokens  cost  hand-back  format    AES",
        "──────  ────────────────────  ──────  ──────  ────  ─────────  ──────  ─────",
        "pair    0.750 [0.400, 0.900]   0.500    30.0  22.5       0.25    0.50  +2.00",
        "single  0.500 [0.200, 0.800]       –    60.0  60.0       0.00    1.00      –",
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
    loaded = LoadedBenchmark(name=name, title=name, source=name, problems=problems, remark="")
    return Prepared(loaded=loaded, golds=GoldCheck(problems=2, parsed=2, verified=2, faults={}), num_samples=2)


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
    content = read_results(tmp_path / "eval" / "training.json")
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
