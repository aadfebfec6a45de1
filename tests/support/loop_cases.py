"""Doubles for the loop's tests: engines that learn, on a clock that jumps."""

import asyncio
import functools
from collections import deque

from longshort.dialogue.rollout import Admission, Decoding
from longshort.learning.loop import role_schedule, roll_out, train_loop
from longshort.types import LONG, ROLES, SHORT, Completion, Problem, Reward

PROBLEMS = [Problem(id=f"p{i}", question="?", answer="1") for i in range(40)]
TOKENS, EXCHANGES, GROUP, PER_STEP = 10, 2, 4, 4
EPISODES = GROUP * PER_STEP


class VirtualClock(asyncio.SelectorEventLoop):
    """Sleeping takes no time: when nobody can run, the clock jumps to the next timer."""

    def __init__(self):
        super().__init__()
        self.seconds = 0.0
        self._selector.select = self._jump

    def time(self):
        return self.seconds

    def _jump(self, timeout):
        assert timeout is not None, "everybody waits for somebody"
        self.seconds += timeout
        return []


def on_virtual_clock(coroutine):
    """(result, seconds that it took)."""
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(coroutine), runner.get_loop().seconds


class Alternate:
    """Long, short, long, short; a role's prompt is what it wrote before."""

    roles = ROLES

    def next(self, turns):
        return ROLES[len(turns) % 2] if len(turns) < 2 * EXCHANGES else "answered"

    def render(self, problem, turns, speaker, tokenizer):
        return (1, *(i for turn in turns if turn.role == speaker for i in turn.completion.token_ids))

    def budget(self, turns, speaker, prompt, context):
        return TOKENS, "turn_length"

    def stops(self, speaker, tokenizer):
        return (), ()


class Policy:
    """An engine whose every step takes `seconds` per turn that it is writing (a device that is always busy), and a
    learner.

    Whoever is being written when an update is published goes on with the new weights, as in the real engines.
    """

    tokenizer, context = None, 10**6

    def __init__(self, role, *, seconds=1 / EPISODES, capacity=10**6, update_s=15.0):
        self.role, self.seconds, self.capacity, self.update_s = role, seconds, capacity, update_s
        self.version, self.busy_s, self.asked, self.learned, self.ages, self.samples = 0, 0.0, [], 0, [], []
        self._queue, self._writing, self._runner = deque(), [], None

    async def generate(self, prompt_ids, sampling):
        future = asyncio.get_running_loop().create_future()
        self.asked.append((self.learned, sampling.seed))
        self._queue.append({"future": future, "seed": sampling.seed, "written": 0, "updates": []})
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._decode())
        return await future

    async def _decode(self):
        await settled()
        while self._queue or self._writing:
            while self._queue and len(self._writing) < self.capacity:
                self._writing.append(self._queue.popleft())
            took = self.seconds * len(self._writing)
            await asyncio.sleep(took)
            self.busy_s += took
            for turn in self._writing:
                turn["written"] += 1
                if turn["written"] == TOKENS and not turn["future"].done():
                    turn["future"].set_result(self._completion(turn))
            self._writing = [turn for turn in self._writing if not turn["future"].done()]
            await settled()

    def _completion(self, turn):
        ids = tuple(turn["seed"] % 1000 + i for i in range(TOKENS))
        began, updates = self.version - len(turn["updates"]), tuple(turn["updates"])
        return Completion(token_ids=ids, logprobs=(-0.5,) * TOKENS, text="", stop="eos", version=began, updates=updates)

    async def update(self, samples):
        self.samples.append(samples)
        self.ages.append({self.version - sample.version for sample in samples})
        await asyncio.sleep(self.update_s)
        self.version += 1
        self.learned += 1
        for turn in self._writing:
            turn["updates"].append(turn["written"])
        return {}


async def settled():
    """Let everyone who can do something do it."""
    for _ in range(10):
        await asyncio.sleep(0)


def score(problem, episodes, progress):
    return [Reward(totals={LONG: float(i), SHORT: float(i)}, terms={"correct": 1.0}) for i, _ in enumerate(episodes)]


def one_each(groups, role):
    return [[1.0] * len(group.episodes) for group in groups]


def rollouts(
    policies,
    steps,
    *,
    live=10**6,
    starting=EPISODES,
    spares=lambda index: [],
    zero_variance=lambda index, group: False,
    reward=score,
):
    return functools.partial(
        roll_out,
        steps=steps,
        problems=lambda index: PROBLEMS[PER_STEP * index :][:PER_STEP],
        spares=spares,
        zero_variance=zero_variance,
        policies=policies,
        protocol=Alternate(),
        reward=reward,
        group_size=GROUP,
        decoding=Decoding(),
        seed=3,
        admission=Admission(live=live, starting=starting),
    )


def train(steps, staleness, *, policies=None, schedule="joint", after=None, stop_after=None, **changes):
    """(policies, steps seen, seconds on the virtual clock)."""
    policies = policies or {role: Policy(role) for role in ROLES}
    seen = []

    async def go():
        stop = asyncio.Event()

        async def note(step):
            seen.append(step)
            if step.index == stop_after:
                stop.set()

        await train_loop(
            start=0,
            steps=steps,
            roll_out=rollouts(policies, steps, **changes),
            policies=policies,
            advantage=one_each,
            schedule=role_schedule(schedule, steps, ROLES),
            staleness=staleness,
            after=note,
            stop=stop,
        )

    _, seconds = on_virtual_clock(go())
    return policies, seen, seconds
