"""The cold start through the command line: bad rows named, a kill survived, nothing done twice, two models made."""

import json
import os
import random
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest

from longshort import cli
from longshort.miniature.world import make_problems, teacher_trace
from longshort.recipe.schema import dump
from longshort.types import ROLES
from tests.support import tiny_models
from tests.support.cold_starts import cold_start_recipe
from tests.support.commands import LONGSHORT

GOOD = 24


def lines(folder, step):
    return [json.loads(line) for line in (folder / "run" / "thoughts" / f"{step}.jsonl").read_text().splitlines()]


def manifest(folder, step):
    return json.loads((folder / "run" / "thoughts" / f"{step}.manifest.json").read_text())


def outcomes(folder, step):
    return manifest(folder, step)["counts"]["outcomes"]


def teacher_rows():
    """24 traces, one of them with Windows line ends; then a duplicate problem, four bad rows and one with a tag."""
    rows = [
        {"problem": p.question, "answer": p.answer, "response": teacher_trace(p, random.Random(i))}
        for i, p in enumerate(make_problems("train", GOOD, 0))
    ]
    rows[3]["response"] = rows[3]["response"].replace("\n", "\r\n")
    longer = "\n\n".join(["a: 4*6=4, *2=8."] * 40 + [rows[5]["response"]])
    return [
        *rows,
        {**rows[0]},
        {**rows[0], "response": " "},
        {**rows[0], "answer": "\\frac{"},
        {**rows[1], "response": "\\boxed{1}"},
        {**rows[5], "response": longer},
        {**rows[2], "response": f"One </answer> two.\n\n{rows[2]['response']}"},
    ]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A cold start that is killed in the middle of its rollouts; the folder, and the rollouts it had written."""
    folder = tmp_path_factory.mktemp("coldstart")
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in teacher_rows()))
    recipe = folder / "recipe.yaml"
    recipe.write_text(dump(cold_start_recipe(folder, tiny_models.make(folder / "models"))))
    command = [*LONGSHORT, "coldstart", str(recipe)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    rollouts = folder / "run" / "thoughts" / "rollouts.jsonl"
    end = time.monotonic() + 200
    while not (rollouts.is_file() and len(rollouts.read_bytes().splitlines()) >= 3):
        assert running.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    whole = [json.loads(line) for line in rollouts.read_bytes().splitlines() if line.endswith(b"}")]
    return SimpleNamespace(folder=folder, recipe=str(recipe), command=command, rollouts=whole)


@pytest.fixture(scope="module")
def finished(started):
    """The same command again, to its end."""
    assert not manifest(started.folder, "rollouts")["complete"]
    done = subprocess.run(started.command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return SimpleNamespace(**vars(started), printed=done.stdout)


def test_a_killed_cold_start_says_what_it_need_not_do_again(finished):
    assert "chunk      done before" in finished.printed
    assert "traces were done before" in finished.printed


def test_rollouts_written_before_the_kill_are_kept(finished):
    after = {row["id"]: row for row in lines(finished.folder, "rollouts")}
    assert len(after) == len(teacher_rows())
    assert [after[row["id"]] for row in finished.rollouts] == finished.rollouts


def test_every_bad_row_has_its_reason(finished):
    bad = {"duplicate": 1, "empty_response": 1, "gold_unparseable": 1, "one_paragraph": 1}
    assert outcomes(finished.folder, "chunk") == {"ok": GOOD + 2} | bad


def test_remarkable_rows_are_counted(finished):
    assert manifest(finished.folder, "chunk")["counts"]["notes"] == {"crlf": 1, "role_tags": 1, "repeated_problem": 3}


def test_the_thoughts_of_a_trace_are_the_trace(finished):
    whole = ["".join(thought["text"] for thought in row["thoughts"]) for row in lines(finished.folder, "chunk")[:GOOD]]
    assert whole == [row["response"] for row in teacher_rows()[:GOOD]]


def test_a_trace_longer_than_the_context_has_no_rollouts(finished):
    assert outcomes(finished.folder, "rollouts") == {"ok": GOOD + 1, "dropped_before": 4, "context": 1}


def test_a_trace_that_holds_a_tag_is_not_rewritten(finished):
    assert outcomes(finished.folder, "rewrite")["role_tags"] == 1


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_a_model(finished, role):
    assert (finished.folder / "run" / "models" / f"cold-{role}" / "model.safetensors").is_file()


def test_the_page_of_thoughts_is_written(finished):
    assert (finished.folder / "run" / "thoughts" / "thoughts.html").is_file()


def test_a_step_under_another_rule_is_refused(finished, capfd):
    assert cli.main(["partition", finished.recipe, "coldstart.partition.rule=random"]) == 1
    error = capfd.readouterr().err
    assert "made with rule = 'metric', now 'random'" in error
    assert "--redo partition" in error


@pytest.fixture(scope="module")
def redone(finished):
    """The partition made again under another rule."""
    assert cli.main(["partition", finished.recipe, "coldstart.partition.rule=random", "--redo"]) == 0
    return finished.folder


def test_a_step_can_be_redone_under_another_rule(redone):
    assert manifest(redone, "partition")["settings"]["rule"] == "random"


def test_redoing_a_step_removes_what_was_made_from_it_and_keeps_what_came_before(redone):
    assert not (redone / "run" / "thoughts" / "rows.jsonl").exists()
    assert len(lines(redone, "rollouts")) == len(teacher_rows())


def test_a_step_whose_input_is_missing_names_the_step_to_run(finished, redone, capfd):
    assert cli.main(["rows", finished.recipe, "coldstart.partition.rule=random"]) == 1
    assert "rewrite.jsonl is not complete; run `longshort rewrite` first" in capfd.readouterr().err


@pytest.fixture(scope="module")
def real_chunks(tmp_path_factory, shared_data):
    """120 real traces, cut by the command: their texts, the lines, and the counts."""
    folder = tmp_path_factory.mktemp("real")
    source = shared_data / "long_traces_amc23.jsonl"
    config = cold_start_recipe(folder, dict.fromkeys(ROLES, "x"), traces=str(source))
    (folder / "recipe.yaml").write_text(dump(config))
    assert cli.main(["chunk", str(folder / "recipe.yaml")]) == 0
    texts = [json.loads(line)["response"] for line in source.read_text(encoding="utf-8").splitlines()]
    return SimpleNamespace(texts=texts, lines=lines(folder, "chunk"), counts=manifest(folder, "chunk")["counts"])


def test_nothing_of_a_real_trace_is_lost(real_chunks):
    assert ["".join(thought["text"] for thought in row["thoughts"]) for row in real_chunks.lines] == real_chunks.texts


def test_every_real_trace_is_cut_by_the_rules(real_chunks):
    assert real_chunks.counts["outcomes"] == {"ok": 120}
    assert real_chunks.counts["splitters"] == {"rules": 120}


def test_real_traces_have_2_to_64_thoughts(real_chunks):
    assert real_chunks.counts["thoughts_per_trace"]["min"] >= 2
    assert real_chunks.counts["thoughts_per_trace"]["max"] <= 64
    assert all(row["problem"]["answer"] for row in real_chunks.lines)
