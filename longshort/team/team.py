"""Team: a trained pair that answers questions.

    team = Team.from_pretrained("runs/quickstart/team")
    episode = team.solve("Last digit of 7^6+4?")
    print(team.answer(episode))

The engines are those of training (longshort/pair.py) without learners. They start with the first question; `with team:` or `close` ends
them, as does the end of the program.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longshort.backends import ray_cluster
from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.rollout import Decoding, live_episodes, run_episode, stable_seed
from longshort.dialogue.solo import Solo
from longshort.evaluation.command import check_systems
from longshort.evaluation.systems import preset, protocol_of
from longshort.pair import CANARY_QUESTION, Pair
from longshort.team.conversation import PAIR, Ask, Asked, Event, Finished, ImpossibleAsk, converse, finished
from longshort.team.folder import Found, find_team
from longshort.team.loop_thread import LoopThread
from longshort.types import Episode, LongShortError, Problem, Sampling

ALONE = {"long": "long_alone", "short": "short_alone"}


class Team:
    """Two models, their protocol and its settings, ready to answer. Make it with `from_pretrained`.

    From ordinary code: `solve`. In a coroutine: `async with team:`, then `ask`, `asolve` and `converse`. One or the other, not both.
    """

    def __init__(self, found: Found):
        self.name, self.config, self.protocol = found.name, found.config, found.system.protocol
        self.models = {role: model.folder for role, model in found.system.models.items()}
        self.capacity = live_episodes(sum(self.config.role(role).engine.max_num_seqs for role in self.protocol.roles))
        """Episodes at once; more wait for their turn."""
        self._undo = contextlib.AsyncExitStack()
        self._pair: Pair | None = None
        self._places: asyncio.Semaphore | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: LoopThread | None = None

    @classmethod
    def from_pretrained(cls, source: str | Path, *, overrides: Sequence[str] = (), **engine: Any) -> Team:
        """The team in a team folder, a checkpoint folder, a run's folder or a recipe; nothing is started yet.

        `overrides` are settings as on the command line, `engine` settings of both engines (longshort/recipe/sections.py, EngineConfig):

            Team.from_pretrained("runs/x", overrides=["long.engine.num_gpus=1"], max_num_seqs=32)

        LongShortError where there is no team, a file is damaged, models and tokenizers do not fit the protocol, or a setting is unknown.
        """
        found = find_team(source, overrides, engine)
        check_systems(found.config, [found.system], [])
        return cls(found)

    # --- from ordinary code ---

    def solve(self, problems: str | Problem | Sequence[str | Problem], **settings: Any) -> Episode | list[Episode]:
        """The team's episode on a problem, or on each of several in their order; all go on at once, as many as the engines decode.

        `settings` are those of `Ask` (mode, max_turns, max_tokens, long_token_budget, temperature, top_p, top_k, seed, stop). The same
        seed and problems give the same episodes, and at the seed and temperature of an evaluation, its episodes.
        """
        asks = _asks(problems, settings)
        episodes = self._running().run(self._all(asks))
        return episodes[0] if isinstance(problems, str | Problem) else episodes

    def stream(self, question: str, **settings: Any) -> Iterator[Event]:
        """As `solve` for one question, told while it is written (longshort/team/conversation.py).

        Leaving the loop, by `break`, Ctrl-C or an error, ends the episode and frees the engines.
        """
        ask = Ask(question=question, **settings)
        thread = self._running()
        events = self.converse(ask)
        try:
            while (event := thread.run(_next(events))) is not None:
                yield event
        finally:
            thread.run(events.aclose())

    def start(self) -> Team:
        """Start the engines now instead of with the first question."""
        if self._pair is None:
            self._thread = LoopThread()
            atexit.register(self.close)
            try:
                self._thread.run(self.__aenter__())
            except BaseException:
                self._stop_thread()
                raise
        return self

    def close(self) -> None:
        """End the engines; the next `solve` starts them again."""
        if self._thread:
            self._thread.run(self.__aexit__(None, None, None))
            self._stop_thread()

    def __enter__(self) -> Team:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> LoopThread:
        """The thread in which this team runs, started if need be."""
        if self._pair and not self._thread:
            raise LongShortError(
                "this team was started by `async with`; inside it, `await team.asolve(…)` in place of `team.solve(…)`"
            )
        return self.start()._thread

    def _stop_thread(self) -> None:
        self._thread.stop()
        self._thread = None
        atexit.unregister(self.close)

    # --- in a coroutine ---

    async def __aenter__(self) -> Team:
        try:
            self._undo.callback(ray_cluster.start(self.config))
            self._check_gpus()
            self._pair = await self._undo.enter_async_context(Pair(self.config, self.models, protocol=self.protocol))
            self._places, self._loop = asyncio.Semaphore(self.capacity), asyncio.get_running_loop()
            await asyncio.gather(*map(_warm, self.engines().values()))
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._pair = None
        await self._undo.aclose()

    def _check_gpus(self) -> None:
        """Refuse more GPUs than there are; an engine would wait for them for ever."""
        wanted, there = sum(self.config.role(role).engine.num_gpus for role in self.protocol.roles), ray_cluster.gpus()
        if wanted > there:
            raise LongShortError(
                f"the engines of {self.name} take {wanted:g} GPUs but the cluster has {there:g}; lower engine.num_gpus of a role "
                "(long.engine.num_gpus=0: on the CPU), or add GPUs"
            )

    async def asolve(
        self, problems: str | Problem | Sequence[str | Problem], **settings: Any
    ) -> Episode | list[Episode]:
        """As `solve`."""
        episodes = await self._all(_asks(problems, settings))
        return episodes[0] if isinstance(problems, str | Problem) else episodes

    async def _all(self, asks: Sequence[tuple[Ask, Problem]]) -> list[Episode]:
        tasks = [asyncio.ensure_future(self.ask(ask, problem)) for ask, problem in asks]
        try:
            return [found.episode for found in await asyncio.gather(*tasks)]
        finally:  # at the first error, or when the caller is stopped, nobody goes on
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ask(self, ask: Ask, problem: Problem | None = None) -> Finished:
        """Answer one question. `problem` is what the episode shall name as its problem. Raises ImpossibleAsk, LongShortError."""
        problem = problem or Problem(id="ask", question=ask.question, answer="")
        protocol, engines = self._prepared(ask, problem)
        async with self._places:
            return finished(await run_episode(problem, engines, protocol, self._decoding(ask), ask.seed), protocol)

    async def converse(self, ask: Ask) -> AsyncIterator[Event]:
        """As `ask`, told while it goes on (longshort/team/conversation.py); closing the iterator ends it and frees the engines."""
        problem = Problem(id="ask", question=ask.question, answer="")
        protocol, engines = self._prepared(ask, problem)
        async with self._places:
            events = converse(engines, protocol, problem, self._decoding(ask), ask.seed)
            try:
                async for event in events:
                    yield event
            finally:
                await events.aclose()

    def check(self, ask: Ask) -> None:
        """Raise ImpossibleAsk where this team cannot answer within these bounds: before a place is waited for."""
        self._prepared(ask, Problem(id="ask", question=ask.question, answer=""))

    async def stats(self) -> dict[str, dict[str, float]]:
        """By role: `busy_s`, `sampled_tokens`, `prompt_tokens`, `cached_tokens` since its process started, `restarts`, turns `waiting`."""
        engines = self.engines()
        found = await asyncio.gather(*(engine.stats() for engine in engines.values()))
        return {
            role: stats | {"restarts": engine.restarts, "waiting": engine.waiting}
            for (role, engine), stats in zip(engines.items(), found, strict=True)
        }

    def answer(self, episode: Episode) -> str:
        """The final text of an episode; empty where there is none."""
        return self.protocol.final_text(episode)

    def protocol_for(self, ask: Ask) -> Asked:
        """The team's protocol, or the one for a model alone, under the ask's bounds."""
        if ask.mode not in (PAIR, *self.protocol.roles) or (isinstance(self.protocol, Solo) and ask.mode != PAIR):
            raise ImpossibleAsk("mode", f"is {ask.mode!r}, but this team has one model and no other mode than {PAIR!r}")
        wanted = {"max_exchanges": ask.max_turns, "episode_tokens": ask.max_tokens}
        section = self.config.protocol.model_copy(
            update={name: value for name, value in wanted.items() if value is not None}
        )
        config = self.config.model_copy(update={"protocol": section})
        asked = Asked(protocol_of(config, preset(ALONE.get(ask.mode, "pair"))), ask)
        for role in asked.roles:
            context = self.config.role(role).engine.max_model_len
            for name in ("max_tokens", "long_token_budget"):
                if (getattr(ask, name) or 0) >= context:
                    raise ImpossibleAsk(
                        name,
                        f"is {getattr(ask, name)}, but the {role} model's context holds {context} tokens, the question's included",
                    )
        return asked

    def _prepared(self, ask: Ask, problem: Problem) -> tuple[Asked, Mapping[str, Any]]:
        asked, engines = self.protocol_for(ask), self.engines()
        first = asked.next(())
        prompt = len(asked.render(problem, (), first, engines[first].tokenizer))
        if prompt >= engines[first].context:
            raise ImpossibleAsk(
                "question",
                f"takes {prompt} tokens, but the {first} model's context holds {engines[first].context}; ask a shorter one",
            )
        return asked, {role: engines[role] for role in asked.roles}

    def engines(self) -> Mapping[str, Any]:
        """The engine of each role, while the team runs, in the event loop in which it does."""
        if self._pair is None:
            raise LongShortError(
                "this team has not been started; use `async with team:`, or `team.solve(…)` from ordinary code"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise LongShortError(
                "this team runs in another event loop; `await` it where `async with team:` stands, or use `team.solve(…)`"
            )
        return {role: policy.engine for role, policy in self._pair.policies.items()}

    def _decoding(self, ask: Ask) -> Decoding:
        own = self.config
        return Decoding(
            temperature=own.temperature if ask.temperature is None else ask.temperature,
            top_p=own.top_p if ask.top_p is None else ask.top_p,
            top_k=own.top_k if ask.top_k is None else ask.top_k,
        )


def _asks(problems: str | Problem | Sequence[str | Problem], settings: Mapping[str, Any]) -> list[tuple[Ask, Problem]]:
    """Each problem with its ask; one and the same question twice has two dice."""
    asks = []
    for number, each in enumerate([problems] if isinstance(problems, str | Problem) else problems):
        problem = each if isinstance(each, Problem) else Problem(id=f"problem-{number}", question=each, answer="")
        ask = Ask(question=problem.question, **settings)
        asks.append((replace(ask, seed=stable_seed(ask.seed, problem.id, 0)), problem))
    return asks


async def _warm(engine) -> None:
    """An engine's first tokens take seconds; nobody's question shall wait for them."""
    prompt = encode_problem(engine.tokenizer, "", CANARY_QUESTION)
    await engine.generate(prompt, Sampling(max_tokens=2, stop=(), temperature=1.0, seed=0))


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)
