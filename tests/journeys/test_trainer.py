"""`longshort train` as a process: signals, and a run with vLLM."""

import json
import signal
import subprocess
import sys
import time

import pytest

from longshort.recipe.schema import dump
from longshort.runs import checkpoint
from longshort.types import LONG, SHORT
from tests.support import tiny_models


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make_speaking(tmp_path_factory.mktemp("models"))


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
