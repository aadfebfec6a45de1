"""A learner of two ranks that loses one of them in the middle of an update."""

import asyncio
import os
import signal

from longshort.backends import ray_cluster
from longshort.backends.learners.torch_learner import TorchLearner
from longshort.types import LONG
from tests.support.deepspeed_ranks import SAMPLES, distance, plain, recipe, settings_of


def update_that_loses_a_rank(model: str, number: int, timeout_s: float) -> None:
    """Check one update of two ranks against one device's; then send rank 1 a signal in the middle of a long update."""
    config = recipe(learner=settings_of(3, ranks=2, timeout_s=timeout_s), long={"model": model})

    async def go():
        learner = ray_cluster.make_learner(LONG, model, config, 4)
        try:
            await learner.update(SAMPLES)
            alone = TorchLearner.from_pretrained(LONG, model, plain(config), 4)
            alone.update(SAMPLES)
            assert distance(await learner.weights(), alone.weights()) < 1e-6
            pid = await learner._actors[1].__ray_call__.remote(lambda actor: os.getpid())
            long_update = asyncio.create_task(learner.update(SAMPLES * 300))
            await asyncio.sleep(0.5)
            os.kill(pid, number)
            try:
                await asyncio.wait_for(long_update, 60)
            finally:
                if number == signal.SIGSTOP:
                    os.kill(pid, signal.SIGKILL)
        finally:
            learner.close()

    asyncio.run(go())
