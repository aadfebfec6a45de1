"""Fine-tuning by DeepSpeed."""

import json
import subprocess
import sys

import pytest

from longshort.recipe.schema import dump
from tests.support.fine_tuning import elsewhere, make_world, run_role


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("sft"))


def test_deepspeed_zero_2_reaches_the_same_loss(world, tmp_path):
    """One rank on the CPU, in a process of its own as in a run: the setting is passed through and takes effect."""
    plain, _, _ = run_role(elsewhere(world, tmp_path / "plain"))
    zero = {
        "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    batch = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
    }
    recipe = elsewhere(world, tmp_path / "deepspeed", deepspeed=zero | batch | {"gradient_clipping": 1.0})
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    script = (
        "import json, sys; from longshort.recipe.schema import load; from tests.support.fine_tuning import run_role; "
        "result, *_ = run_role(load(sys.argv[1])); import torch.distributed as dist; "
        "print(json.dumps(result), dist.get_backend())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "recipe.yaml")], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result, backend = done.stdout.strip().splitlines()[-1].rsplit(" ", 1)
    assert backend == "gloo" and json.loads(result)["last_loss"] == pytest.approx(plain["last_loss"], rel=0.02)
