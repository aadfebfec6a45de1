"""Two adapters over one base in one engine process: turns against the learners, a run, a resumption, a restart."""

import asyncio
import json
import os
import shutil
import signal

import pytest
import ray
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from longshort import LongShortTrainer
from longshort.backends import ray_cluster
from longshort.backends.engines.vllm_engine import ENVIRONMENT, VllmLoraCore
from longshort.pair import LearningPair
from longshort.recipe.roles import LoraSection
from longshort.runs import checkpoint
from longshort.types import LONG, ROLES, SHORT, LongShortError, Sampling
from tests.support import tiny_models
from tests.support.adapter_cases import check_one_engine_for_two
from tests.support.engine_cases import PROMPTS
from tests.support.learning_cases import sample_like
from tests.support.training_runs import even_tokens, metrics

LORA = {LONG: {"r": 4, "alpha": 16}, SHORT: {"r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The model that both roles start from."""
    return tiny_models.make_speaking(tmp_path_factory.mktemp("models"))[LONG]


def config(folder, base, backend="auto", **changes):
    roles = {role: tiny_models.role(base, backend=backend) | {"lora": LORA[role]} for role in ROLES}
    return tiny_models.config(folder, dict.fromkeys(ROLES, base), **roles | {"share_engine": True} | changes)


def test_two_steps_of_both_roles_with_one_vllm_engine(tmp_path, base):
    run = LongShortTrainer(args=config(tmp_path, base, loss={"beta": 0.01}), reward=even_tokens)
    run.train()
    rows = metrics(run)
    final = checkpoint.latest(run.output_dir)
    assert [row["step"] for row in rows] == [1, 2] and checkpoint.verify(final)["versions"] == {LONG: 2, SHORT: 2}
    plain, ids = AutoModelForCausalLM.from_pretrained(base), torch.tensor([PROMPTS[0]])
    for role in ROLES:
        assert [row[f"{role}/optimizer_steps"] for row in rows] == [1, 1] and rows[0][f"{role}/kl"] == 0 < rows[1][
            f"{role}/kl"
        ]
        assert max(row[f"{role}/weight_sync/canary_gap"] for row in rows) < 1e-3
        assert 0 <= rows[1][f"rollout/idle_frac/{role}"] < 1
        whole = AutoModelForCausalLM.from_pretrained(final / role)
        adapted = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base), final / "state" / role / "adapter"
        )
        with torch.no_grad():
            assert torch.allclose(whole(ids).logits, adapted(ids).logits, atol=1e-4)
            assert not torch.allclose(whole(ids).logits, plain(ids).logits, atol=1e-3)
        facts = json.loads((final / "state" / role / "adapter" / "adapter_config.json").read_text())
        assert (facts["r"], facts["lora_alpha"], facts["base_model_name_or_path"]) == (LORA[role]["r"], 16, base)


def test_a_resumed_run_of_two_adapters_takes_bit_equal_steps(tmp_path, base):
    same = {"max_steps": 3, "save_steps": 2, "deterministic": True, "backend": "transformers"}
    whole = LongShortTrainer(args=config(tmp_path / "whole", base, **same), reward=even_tokens)
    whole.train()
    again = config(tmp_path / "resumed", base, **same | {"dataset": whole.config.dataset, "share_engine": False})
    resumed = LongShortTrainer(args=again, reward=even_tokens)
    resumed.output_dir.mkdir(parents=True)
    shutil.copytree(whole.output_dir / "checkpoint-2", resumed.output_dir / "checkpoint-2")
    resumed.train(resume=True)
    expected, got = metrics(whole)[2], metrics(resumed)[0]
    names = [f"{role}/{name}" for role in ROLES for name in ("loss", "grad_norm", "learning_rate", "tokens")]
    assert [got[name] for name in names] == [expected[name] for name in names] and expected["short/grad_norm"] > 0
    for role in ROLES:
        for name in (f"{role}/model.safetensors", f"state/{role}/adapter/adapter_model.safetensors"):
            files = [(run.output_dir / "checkpoint-3" / name).read_bytes() for run in (whole, resumed)]
            assert files[0] == files[1], name
    other = dict(LORA[LONG], r=2)
    wrong = again.model_copy(
        update={"long": again.long.model_copy(update={"lora": again.long.lora.model_copy(update=other)})}
    )
    with pytest.raises(LongShortError, match=r"cannot resume .*: long.lora.r was 4 and is now 2; restore it"):
        LongShortTrainer(args=wrong, reward=even_tokens).checkpoint_to_resume(True)


def test_vllm_writes_each_turn_with_its_roles_adapter(tmp_path, base):
    """In a process of its own with an engine's environment, step by step; the model's head is tied."""
    recipe, path = config(tmp_path, base), tiny_models.make(tmp_path / "tied", tied_short=True)[SHORT]

    def check():
        roles = {LONG: LoraSection(r=4), SHORT: LoraSection(r=8)}
        check_one_engine_for_two(VllmLoraCore(path, recipe.long.engine, 0, roles), path)
        return os.listdir("/dev/shm")

    stop = ray_cluster.start(recipe)
    try:
        run = ray.remote(check).options(num_cpus=ray_cluster.cpu_share(), runtime_env={"env_vars": ENVIRONMENT})
        left = ray.get(run.remote(), timeout=200)
    finally:
        stop()
    assert not [name for name in left if name.startswith(("longshort-long-", "longshort-short-"))]


def test_two_learners_and_one_engine_agree_before_and_after_updates_and_a_restart(tmp_path, base):
    recipe, both = config(tmp_path, base, learning_rate=0.03), dict.fromkeys(ROLES, base)

    async def gaps(pair):
        """The largest difference between engine and learner over turns of both roles that are asked for at once."""
        asked = [(role, i) for i in range(3) for role in ROLES]
        largest = dict.fromkeys(ROLES, 0.0)
        turns = await asyncio.gather(
            *(pair.policies[role].generate(PROMPTS[i], Sampling(max_tokens=24, stop=(), seed=i)) for role, i in asked)
        )
        for (role, i), turn in zip(asked, turns, strict=True):
            assert turn.versions == (pair.policies[role].version,) * len(turn.token_ids)
            scores = await pair.policies[role].learner.score(PROMPTS[i], turn.token_ids, 1.0)
            largest[role] = max(largest[role], *(abs(a - b) for a, b in zip(turn.logprobs, scores, strict=True)))
        return largest, [turn.token_ids for (role, _), turn in zip(asked, turns, strict=True) if role == SHORT]

    async def go():
        async with LearningPair(recipe, both, total_updates=dict.fromkeys(ROLES, 9)) as pair:
            long, short = (pair.policies[role] for role in ROLES)
            assert long.engine.backend == "vllm" and (long.version, short.version) == (0, 0)
            first, said = await gaps(pair)
            await long.update([sample_like(i, advantage=(-1.0) ** i) for i in range(4)])
            assert (long.version, short.version) == (1, 0)
            second, said_again = await gaps(pair)
            assert said == said_again, "the other role's adapter is what it was"
            await short.update([sample_like(i, role=SHORT, advantage=(-1.0) ** i) for i in range(4)])
            pid = await long.engine.start()
            assert pid == await short.engine.start(), "one process"
            os.kill(pid, signal.SIGKILL)
            third, said_last = await gaps(pair)
            assert long.engine.restarts == short.engine.restarts == 1 and said_last != said
            return [*first.values(), *second.values(), *third.values()]

    assert max(asyncio.run(go())) < 1e-4
