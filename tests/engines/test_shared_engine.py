"""Two adapters over one base in one engine process: turns against the learners, a run, a resumption, a restart."""

import asyncio
import os
import signal

import pytest

from longshort.pair import LearningPair
from longshort.types import LONG, ROLES, SHORT, Sampling
from tests.support import tiny_models
from tests.support.engine_cases import PROMPTS
from tests.support.learning_cases import sample_like

LORA = {LONG: {"r": 4, "alpha": 16}, SHORT: {"r": 8, "alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}}


def config(folder, base, backend="auto", **changes):
    roles = {role: tiny_models.role(base, backend=backend) | {"lora": LORA[role]} for role in ROLES}
    return tiny_models.config(folder, dict.fromkeys(ROLES, base), **roles | {"share_engine": True} | changes)


@pytest.fixture(scope="module")
def recipe(cluster, speaking, tmp_path_factory):
    return config(tmp_path_factory.mktemp("shared"), speaking[LONG], learning_rate=0.03)


def test_two_learners_and_one_engine_agree_before_and_after_updates_and_a_restart(recipe, speaking):
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

    base = dict.fromkeys(ROLES, speaking[LONG])

    async def go():
        async with LearningPair(recipe, base, total_updates=dict.fromkeys(ROLES, 9)) as pair:
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
