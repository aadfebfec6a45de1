"""A whole evaluation with fake engines: what it starts, what it writes, what it skips the second time, what it
tells."""

import asyncio
import json
import os
import signal

import pytest

from longshort.backends import ray_cluster
from longshort.evaluation.command import evaluate_recipe
from longshort.interruption import Interrupted
from longshort.recipe.schema import parse
from longshort.types import LONG, SHORT, Completion, LongShortError
from tests.support import tiny_models


class Engine:
    """Says 4 when it is alone, and in the short model's turn if the seed is even. `silent` engines never answer."""

    context, backend, silent = 256, "fake", False

    def __init__(self, role, folder, tokenizer, log):
        self.role, self.tokenizer, self.log, self.name = role, tokenizer, log, folder.rpartition("/")[2]

    async def start(self):
        self.log.append(f"+{self.name}")

    def close(self):
        self.log.append(f"-{self.name}")

    async def generate(self, prompt_ids, sampling):
        self.log.append("asked")
        if Engine.silent:
            await asyncio.Event().wait()
        text = "\\boxed{4}" if not sampling.stop or (self.role == SHORT and sampling.seed % 2 == 0) else "\\boxed{5}"
        ids = (
            *self.tokenizer.encode(text, add_special_tokens=False),
            *(sampling.stop_token_ids[:1] or (self.tokenizer.eos_token_id,)),
        )
        stop = sampling.stop[0] if sampling.stop else "eos"
        return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, stop=stop, version=0)


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """`run(name="results", redo=False, **eval settings)`, the log of its engines, and the folder of its files."""
    log, models = [], tiny_models.make(tmp_path)
    monkeypatch.setattr(ray_cluster, "start", lambda config: lambda: log.append("ray ends"))
    monkeypatch.setattr(ray_cluster, "gpus", lambda: 0.0)
    monkeypatch.setattr(ray_cluster, "room", lambda: 9)
    monkeypatch.setattr(
        ray_cluster, "make_engine", lambda role, folder, config, tokenizer: Engine(role, folder, tokenizer, log)
    )
    monkeypatch.setattr(Engine, "silent", False)
    for name, rows in {"fours": "abcdef", "more": "gh"}.items():
        lines = (json.dumps({"id": row, "problem": f"{row}: 2*2?", "answer": "4"}) for row in rows)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "broken.jsonl").write_text('{"problem": "1+1?"}')
    recipe = tiny_models.config(tmp_path, models).model_dump()

    def run(name="results", redo=False, **settings):
        log.clear()
        standard = {
            "benchmarks": [str(tmp_path / "fours.jsonl")],
            "systems": ["pair", "single_long"],
            "base": "single_long",
        }
        return evaluate_recipe(parse(recipe | {"eval": standard | settings}), name=name, redo=redo)

    return run, log, tmp_path


def accuracies(content):
    return {
        (row["system"], row["benchmark"].rpartition("/")[2], row["decoding"]): row["accuracy"]
        for row in content["results"]
    }


def test_every_system_on_every_benchmark_with_one_engine_per_model(evaluation, capsys):
    run, log, folder = evaluation
    content = run(benchmarks=[str(folder / f"{name}.jsonl") for name in ("fours", "broken", "more")], greedy=False)
    assert [event for event in log if event != "asked"] == ["+long", "+short", "-long", "-short", "ray ends"]
    assert log.count("asked") == 8 * 2 + 8
    found = accuracies(content)
    assert [key[:2] for key in found] == [
        ("pair", "fours.jsonl"), ("pair", "more.jsonl"), ("single_long", "fours.jsonl"), ("single_long", "more.jsonl"),
        ("pair", "all"), ("single_long", "all"),
    ]  # fmt: skip
    assert found["single_long", "all", "sampled"] == 1.0 and 0 < found["pair", "fours.jsonl", "sampled"] < 1
    (fault,) = content["faults"]
    assert "broken.jsonl, line 1: no answer" in fault and fault in capsys.readouterr().out
    pair, single = content["results"][0], content["results"][2]
    gain = {
        each["metric"]: each["difference"]
        for each in content["comparisons"]
        if each["benchmark"].endswith("fours.jsonl")
    }
    assert gain == pytest.approx({key: pair[key] - single[key] for key in ("accuracy", "tokens", "cost")})
    assert single["aes"] == 0.0 and {each["base"] for each in content["comparisons"]} == {"single_long"}
    written = json.loads((folder / "run" / "eval" / "results.json").read_text())
    assert all(written[key] == content[key] for key in ("results", "comparisons", "faults", "systems", "settings"))


def test_what_is_done_is_not_done_again_until_it_is_to_be(evaluation, capsys):
    run, log, folder = evaluation
    first = run(greedy=False)
    assert run(greedy=False)["results"] == first["results"] and log == []
    assert capsys.readouterr().out.count("done before, skipped") == 2
    wider = run(systems=["pair", "single_long", "short_alone"], greedy=False)
    assert log == ["+short", *["asked"] * 6, "-short", "ray ends"] and wider["results"][:2] == first["results"]
    with pytest.raises(
        LongShortError, match=r"pair.*sampled.manifest.json was made with seed = 2024, now 1; .* with --redo"
    ):
        run(greedy=False, seed=1)
    assert log == []
    assert run(greedy=False, seed=1, redo=True)["settings"]["eval"]["seed"] == 1 and log.count("asked") == 18
    old = list((folder / "run" / "eval" / "results" / "replaced-1").glob("*.jsonl"))
    assert len(old) == 2  # short_alone was no part of it


def test_an_evaluation_that_is_stopped_closes_its_engines_and_leaves_no_results(evaluation, monkeypatch):
    run, log, folder = evaluation
    monkeypatch.setattr(Engine, "silent", True)

    def start(config):
        asyncio.get_running_loop().call_later(0.2, os.kill, os.getpid(), signal.SIGTERM)
        return lambda: log.append("ray ends")

    monkeypatch.setattr(ray_cluster, "start", start)
    with pytest.raises(Interrupted, match="stopped by SIGTERM; start the same command again to continue"):
        run(greedy=False)
    assert log == ["+long", *["asked"] * 6, "-long", "ray ends"]  # the system with the fewest engines is first
    assert not (folder / "run" / "eval" / "results.json").exists()


def test_cross_play_plays_every_long_with_every_short_model(evaluation):
    run, log, folder = evaluation
    content = run(systems=[], cross_play=["base", str(folder)], base="", greedy=False)
    names = [f"long@{long}+short@{short}" for long in ("base", folder.name) for short in ("base", folder.name)]
    assert [row["system"] for row in content["results"]] == names and len(
        {row["accuracy"] for row in content["results"]}
    ) == 1
    assert content["cross_play"] == {"long": ["base", str(folder)], "short": ["base", str(folder)]}
    assert [event for event in log if event != "asked"] == [
        "+long",
        "+short",
        "-long",
        "-short",
        "ray ends",
    ]  # two names of one model
    assert "Cross-play" in (folder / "run" / "eval" / "results.md").read_text() and content["comparisons"] == []


def test_the_models_by_role_stand_in_the_results(evaluation):
    run, _, folder = evaluation
    content = run(systems=["long_plays_both"], base="", temperature=0)
    assert content["systems"]["long_plays_both"]["models"] == {LONG: str(folder / "long"), SHORT: str(folder / "long")}
    assert content["settings"]["long"]["engine"]["max_model_len"] == 256 and content["settings"]["prices"] == {
        LONG: 1.0,
        SHORT: 1.0,
    }
    assert [(row["decoding"], row["samples"]) for row in content["results"]] == [("greedy", 1)]
