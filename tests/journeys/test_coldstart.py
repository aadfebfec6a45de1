"""The cold start end to end through the command line: bad rows named, a kill survived, nothing done twice, two models
at the end."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from longshort.coldstart.command import check
from longshort.recipe.schema import parse
from longshort.types import LONG, ROLES, SHORT, LongShortError
from tests.support import tiny_models

SFT = {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "max_length": 256}


def recipe(folder, models, **coldstart):
    roles = {
        role: tiny_models.role(models[role], backend="transformers") | {"turn_tokens": 160, "sft": SFT}
        for role in ROLES
    }
    return tiny_models.config(
        folder,
        models,
        **roles,
        protocol={"tags": "special", "max_exchanges": 3, "episode_tokens": 400},
        coldstart={
            "traces": str(folder / "traces.jsonl"),
            "importance": {"num_rollouts": 2, "max_tokens": 8, "instructions": ""},
            "rewrite": {"rewriter": "verbatim"},
        }
        | coldstart,
    )


def test_what_cannot_be_carried_out_is_refused_before_anything_starts(tmp_path):
    base = recipe(tmp_path, dict.fromkeys(ROLES, "x")).model_dump()
    for changes, says in [
        ({"coldstart": None}, "no section `coldstart:`"),
        (
            {"coldstart": {"traces": "t", "partition": {"rule": "metrik"}}},
            "'metrik' is not known; did you mean 'metric'?",
        ),
        (
            {"coldstart": {"traces": "t", "rewrite": {"rewriter": "rules"}}},
            "coldstart.rewrite.rewriter: 'rules' is not known",
        ),
        (
            {"coldstart": {"traces": "t"}},
            "coldstart.rewrite.rewriter is 'instruct' but coldstart.instruct.model is empty",
        ),
        ({"protocol": {"name": "solo"}}, "the cold start makes dialogues of the protocol long_short"),
    ]:
        with pytest.raises(LongShortError, match=says):
            check(parse(base | changes))


def longshort(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "longshort.cli", *arguments], capture_output=True, text=True, timeout=600, **options
    )


def lines(folder, step):
    return [json.loads(line) for line in (folder / "run" / "thoughts" / f"{step}.jsonl").read_text().splitlines()]


def manifest(folder, step):
    return json.loads((folder / "run" / "thoughts" / f"{step}.manifest.json").read_text())


@pytest.mark.engine
@pytest.mark.timeout(900)
def test_from_a_file_of_traces_to_two_models(tmp_path):
    """One command, killed in the middle of the rollouts and started again; then a step made anew under another rule."""
    import random

    from longshort.miniature.world import make_problems, teacher_trace
    from longshort.recipe.schema import dump

    problems = make_problems("train", 24, 0)
    rows = [
        {"problem": p.question, "answer": p.answer, "response": teacher_trace(p, random.Random(i))}
        for i, p in enumerate(problems)
    ]
    good = len(rows)
    rows[3]["response"] = rows[3]["response"].replace("\n", "\r\n")
    long_row = {**rows[5], "response": "\n\n".join(["a: 4*6=4, *2=8."] * 40 + [rows[5]["response"]])}
    odd = [
        {**rows[0]},
        {**rows[0], "response": " "},
        {**rows[0], "answer": "\\frac{"},
        {**rows[1], "response": "\\boxed{1}"},
        long_row,
    ]
    odd.append({**rows[2], "response": f"One </answer> two.\n\n{rows[2]['response']}"})
    (tmp_path / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *odd]))
    models = tiny_models.make(tmp_path / "models")
    (tmp_path / "recipe.yaml").write_text(dump(recipe(tmp_path, models)))

    command = [sys.executable, "-m", "longshort.cli", "coldstart", str(tmp_path / "recipe.yaml")]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    rollouts = tmp_path / "run" / "thoughts" / "rollouts.jsonl"
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and not (rollouts.is_file() and len(rollouts.read_bytes().splitlines()) >= 3):
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    before = [json.loads(line) for line in rollouts.read_bytes().splitlines() if line.endswith(b"}")]
    assert len(before) >= 3 and not manifest(tmp_path, "rollouts")["complete"]

    done = longshort("coldstart", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "chunk      done before" in done.stdout and "traces were done before" in done.stdout
    after = {row["id"]: row for row in lines(tmp_path, "rollouts")}
    assert len(after) == len(rows) + len(odd) and all(after[row["id"]] == row for row in before)

    chunks = lines(tmp_path, "chunk")
    outcomes = manifest(tmp_path, "chunk")["counts"]["outcomes"]
    assert outcomes == {"ok": good + 2, "duplicate": 1, "empty_response": 1, "gold_unparseable": 1, "one_paragraph": 1}
    assert manifest(tmp_path, "chunk")["counts"]["notes"] == {"crlf": 1, "role_tags": 1, "repeated_problem": 3}
    assert ["".join(t["text"] for t in row["thoughts"]) for row in chunks[:good]] == [row["response"] for row in rows]
    assert manifest(tmp_path, "rollouts")["counts"]["outcomes"] == {"ok": good + 1, "dropped_before": 4, "context": 1}
    assert manifest(tmp_path, "rewrite")["counts"]["outcomes"]["role_tags"] == 1
    for role in ROLES:
        assert (tmp_path / "run" / "models" / f"cold-{role}" / "model.safetensors").is_file()
    assert (tmp_path / "run" / "thoughts" / "thoughts.html").is_file()

    other = longshort("partition", str(tmp_path / "recipe.yaml"), "coldstart.partition.rule=random")
    assert (
        other.returncode == 1
        and "made with rule = 'metric', now 'random'" in other.stderr
        and "--redo partition" in other.stderr
    )
    redone = longshort("partition", str(tmp_path / "recipe.yaml"), "coldstart.partition.rule=random", "--redo")
    assert redone.returncode == 0 and manifest(tmp_path, "partition")["settings"]["rule"] == "random"
    assert not (tmp_path / "run" / "thoughts" / "rows.jsonl").exists() and len(lines(tmp_path, "rollouts")) == len(
        after
    )
    early = longshort("rows", str(tmp_path / "recipe.yaml"), "coldstart.partition.rule=random")
    assert early.returncode == 1 and "rewrite.jsonl is not complete; run `longshort rewrite` first" in early.stderr


@pytest.mark.engine
def test_real_traces_are_cut_by_the_command(tmp_path, shared_data):
    source = shared_data / "long_traces_amc23.jsonl"
    from longshort.recipe.schema import dump

    config = recipe(tmp_path, dict.fromkeys(ROLES, "x"), traces=str(source))
    (tmp_path / "recipe.yaml").write_text(dump(config))
    done = longshort("chunk", str(tmp_path / "recipe.yaml"))
    assert done.returncode == 0, done.stderr[-2000:]
    texts = [json.loads(line)["response"] for line in source.read_text(encoding="utf-8").splitlines()]
    chunks = lines(tmp_path, "chunk")
    assert ["".join(t["text"] for t in row["thoughts"]) for row in chunks] == texts
    counts = manifest(tmp_path, "chunk")["counts"]
    assert counts["outcomes"] == {"ok": 120} and counts["splitters"] == {"rules": 120}
    assert counts["thoughts_per_trace"]["min"] >= 2 and counts["thoughts_per_trace"]["max"] <= 64
    assert {row["problem"]["answer"] for row in chunks} and {LONG, SHORT} == set(ROLES)
