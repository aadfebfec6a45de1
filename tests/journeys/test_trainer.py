"""The trainer on tiny models: bit-equal resumption, signals, and its ways in."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from longshort import LongShortTrainer
from longshort.miniature.world import make_problems
from longshort.recipe.schema import dump
from longshort.runs import checkpoint
from longshort.types import LONG, SHORT, Completion, Reward, Turn
from tests.support import tiny_models
from tests.support.training_runs import episodes, even_tokens, metrics, trainer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make_speaking(tmp_path_factory.mktemp("models"))


def turn(role, prompt_ids, token_ids):
    completion = Completion(token_ids=token_ids, logprobs=(-0.5,) * len(token_ids), text="", stop="</think>", version=0)
    return Turn(role=role, prompt_ids=prompt_ids, completion=completion)


def test_a_resumed_run_takes_bit_equal_steps(tmp_path, models):
    whole = trainer(tmp_path / "whole", models, max_steps=3, save_steps=2, deterministic=True)
    whole.train()
    resumed = trainer(
        tmp_path / "resumed", models, max_steps=3, save_steps=2, deterministic=True, dataset=whole.config.dataset
    )
    resumed.output_dir.mkdir(parents=True)
    shutil.copytree(whole.output_dir / "checkpoint-2", resumed.output_dir / "checkpoint-2")
    resumed.train(resume=True)
    expected, got = metrics(whole)[2], metrics(resumed)[0]
    names = [f"{role}/{name}" for role in (LONG, SHORT) for name in ("loss", "grad_norm", "learning_rate", "tokens")]
    assert expected["step"] == got["step"] == 3
    assert [got[name] for name in names] == [expected[name] for name in names]
    assert expected["long/grad_norm"] > 0 and expected["short/grad_norm"] > 0
    for role in (LONG, SHORT):
        files = [
            (run.output_dir / "checkpoint-3" / role / "model.safetensors").read_bytes() for run in (whole, resumed)
        ]
        assert files[0] == files[1], f"the {role} weights differ"
    rows = [json.loads(line) for line in (whole.output_dir / "episodes" / "step-000003.jsonl").read_text().splitlines()]
    for row in rows:
        assert set(row.get("gaps", ())) == {
            role for role, advantage in row["advantages"].items() if advantage and spoke(row, role)
        }
        for role, gaps in row.get("gaps", {}).items():
            assert (
                len(gaps) == spoke(row, role) and max(map(abs, gaps)) < 1e-3
            )  # the engine sampled from the learner's weights
    assert len(rows) == 16 and any(row.get("gaps", {}).keys() == {LONG, SHORT} for row in rows)


def spoke(row, role):
    """How many tokens the role sampled in the episode of this line."""
    return sum(len(turn["token_ids"]) for turn in row["turns"] if turn["role"] == role)


def test_groups_without_variance_train_nothing_and_say_so(tmp_path, models, capsys):
    def constant(problem, episodes, progress):
        return [Reward(totals={LONG: 1.0, SHORT: 1.0}, terms={"correct": 1.0}) for _ in episodes]

    run = trainer(tmp_path, models, reward=constant, max_steps=1, refill=6)
    last = run.train()
    assert last["team/refilled_groups"] == 6 and len(episodes(run)[0]) == (4 + 6) * 4
    assert last["long/skipped_empty"] == last["short/skipped_empty"] == 1 and last["long/zero_variance_groups"] == 4
    assert "every group scored the same: nothing to learn" in capsys.readouterr().out


def start_command(tmp_path, models, **changes):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump(tiny_models.config(tmp_path, models, **changes)))
    return [sys.executable, "-m", "longshort.cli", "train", str(recipe)]


def descendants(pid):
    import psutil

    return psutil.Process(pid).children(recursive=True)


@pytest.mark.parametrize(("number", "staleness"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_signal_saves_and_leaves_no_process_behind(tmp_path, models, number, staleness):
    import psutil

    quick = {role: tiny_models.role(models[role], backend="transformers") for role in (LONG, SHORT)}
    process = subprocess.Popen(
        start_command(tmp_path, models, max_steps=100_000, staleness=staleness, **quick),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    else:
        pytest.fail(process.stderr.read())
    children = descendants(process.pid)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "continue with --resume" in errors
    facts = checkpoint.verify(checkpoint.latest(tmp_path / "run"))
    assert facts["step"] >= 1
    deadline = time.monotonic() + 20
    while (
        left := [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    ) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left == []


def test_way_one_the_command_line_trains_with_vllm(tmp_path, models):
    result = subprocess.run(start_command(tmp_path, models), capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert (
        rows[-1]["team/tokens"] > 0
        and {"long/grad_norm", "short/grad_norm", "rollout/idle_frac/long"} <= rows[-1].keys()
    )
    from transformers import AutoModelForCausalLM

    for role in (LONG, SHORT):
        assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-2" / role).num_parameters() > 0


def test_way_two_the_trainer_class_takes_its_own_data_and_reward(tmp_path, models):
    config = trainer(tmp_path, models, max_steps=1).config
    rows = [{"problem": problem.question, "answer": problem.answer} for problem in make_problems("train", 4, 0)]
    last = LongShortTrainer(
        long=models[LONG], short=models[SHORT], train_dataset=rows, reward=even_tokens, args=config
    ).train()
    assert last["long/skipped"] == 0 and last["long/grad_norm"] > 0
