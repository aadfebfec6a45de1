"""Team: a trained pair that answers questions.

    team = Team.from_pretrained("runs/quickstart/team")
    episode = team.solve("Last digit of 7^6+4?")
    print(team.answer(episode))

The engines are those of training (longshort/pair.py) without learners. They start with the first question; leaving
`with team:`, `close` or the end of the program ends them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longshort.backends import ray_cluster
from longshort.dialogue.encoding import encode_problem
from longshort.dialogue.rollout import Decoding, Engine, live_episodes, stable_seed
from longshort.evaluation.command import check_systems
from longshort.evaluation.systems import preset, protocol_of
from longshort.pair import CANARY_QUESTION, Pair
from longshort.team.conversation import (
    PAIR,
    Event,
    Finished,
    ImpossibleQuery,
    LimitedProtocol,
    Query,
    QuestionTooLong,
    converse,
)
from longshort.team.folder import StoredTeam, find_team
from longshort.team.loop_thread import LoopThread
from longshort.types import LONG, SHORT, Episode, LongShortError, Problem, Sampling
from longshort.waiting import gather_or_cancel

SYSTEMS = {PAIR: "pair", LONG: "long_alone", SHORT: "short_alone"}
"""The system of an evaluation that answers in each mode."""


class Team:
    """Two models, their protocol and its settings, ready to answer. Make it with `from_pretrained`.

    From ordinary code: `solve` and `stream`. In a coroutine: `async with team:`, then `ask`, `asolve` and `converse`.
    One or the other, not both.
    """

    def __init__(self, stored: StoredTeam):
        self.name, self.config, self.protocol = stored.name, stored.config, stored.system.protocol
        self.models = {role: model.folder for role, model in stored.system.models.items()}
        self.capacity = live_episodes(sum(self.config.role(role).engine.max_num_seqs for role in self.protocol.roles))
        """Most episodes at once; others wait."""
        self._places = asyncio.Semaphore(self.capacity)
        self._undo = contextlib.AsyncExitStack()
        self._pair: Pair | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: LoopThread | None = None

    @classmethod
    def from_pretrained(cls, source: str | Path, *, overrides: Sequence[str] = (), **engine: Any) -> Team:
        """Return the team in a team folder, a checkpoint folder, a run's folder or a recipe; nothing is started yet.

        `overrides` are settings as on the command line, `engine` settings of both engines (EngineConfig in
        longshort/recipe/sections.py):

            Team.from_pretrained("runs/x", overrides=["long.engine.num_gpus=1"], max_num_seqs=32)

        LongShortError if there is no team, a file is damaged, models do not fit the protocol, or a setting is unknown.
        """
        stored = find_team(source, overrides, engine)
        check_systems(stored.config, [stored.system], [])
        return cls(stored)

    # --- from ordinary code ---

    def solve(self, problems: str | Problem | Sequence[str | Problem], **settings: Any) -> Episode | list[Episode]:
        """Return the team's episode on a problem, or on each of several in their order; they run side by side.

        `settings` are those of `Query` (mode, max_turns, max_tokens, long_token_budget, temperature, top_p, top_k,
        seed, stop). The same seed and problems give the same episodes, with an evaluation's settings its own.
        """
        queries = _queries(problems, settings)
        episodes = self._running().run(self._episodes(queries))
        return episodes[0] if isinstance(problems, str | Problem) else episodes

    def stream(self, question: str, **settings: Any) -> Generator[Event, None, None]:
        """Yield the events of the dialogue on a question while it is written; `settings` as for `solve`.

        Leaving the loop, by `break`, Ctrl-C or an error, ends the episode and frees the engines.
        """
        query = Query(question=question, **settings)
        thread = self._running()
        events = self.converse(query)
        try:
            while (event := thread.run(_next(events))) is not None:
                yield event
        finally:
            thread.run(events.aclose())

    def start(self) -> Team:
        """Start the engines now instead of with the first question."""
        self._running()
        return self

    def close(self) -> None:
        """End the engines; the next `solve` starts them again."""
        if self._thread:
            self._thread.run(self.__aexit__())
            self._stop_thread(self._thread)

    def __enter__(self) -> Team:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> LoopThread:
        """Return the thread in which this team runs, started if need be."""
        if self._thread:
            return self._thread
        if self._pair:
            raise LongShortError("this team was started by `async with`; inside it, use `await team.asolve(…)`")
        self._thread = thread = LoopThread()
        atexit.register(self.close)
        try:
            thread.run(self.__aenter__())
        except BaseException:
            self._stop_thread(thread)
            raise
        return thread

    def _stop_thread(self, thread: LoopThread) -> None:
        thread.stop()
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
        """Refuse more GPUs than there are; an engine would wait for them forever."""
        needed = sum(self.config.role(role).engine.num_gpus for role in self.protocol.roles)
        if needed > (available := ray_cluster.gpus()):
            raise LongShortError(
                f"the engines of {self.name} take {needed:g} GPUs but the cluster has {available:g}; lower "
                "engine.num_gpus of a role (long.engine.num_gpus=0: on the CPU), or add GPUs"
            )

    async def asolve(
        self, problems: str | Problem | Sequence[str | Problem], **settings: Any
    ) -> Episode | list[Episode]:
        """Do as `solve`."""
        episodes = await self._episodes(_queries(problems, settings))
        return episodes[0] if isinstance(problems, str | Problem) else episodes

    async def _episodes(self, queries: Sequence[tuple[Query, Problem]]) -> list[Episode]:
        return [end.episode for end in await gather_or_cancel(*(self.ask(*each) for each in queries))]

    async def ask(self, query: Query, problem: Problem | None = None) -> Finished:
        """Answer one question; the episode names `problem` as its problem. Raises ImpossibleQuery, LongShortError."""
        problem = problem or _problem(query)
        limited, engines = self._prepared(query, problem)
        async with self._places:
            return await limited.play(problem, engines, self._decoding(query))

    async def converse(self, query: Query) -> AsyncGenerator[Event, None]:
        """Do as `ask` and yield events meanwhile; closing the iterator ends the episode and frees the engines."""
        problem = _problem(query)
        limited, engines = self._prepared(query, problem)
        async with (
            self._places,
            contextlib.aclosing(converse(engines, limited, problem, self._decoding(query))) as events,
        ):
            async for event in events:
                yield event

    async def stats(self) -> dict[str, dict[str, float]]:
        """Return, by role, `busy_s`, `sampled_tokens`, `prompt_tokens` and `cached_tokens` since the engine's process
        started, its `restarts`, and the turns that are `waiting`."""
        engines = self.engines()
        counters = await asyncio.gather(*(engine.stats() for engine in engines.values()))
        return {
            role: {**counts, "restarts": engine.restarts, "waiting": engine.waiting}
            for (role, engine), counts in zip(engines.items(), counters, strict=True)
        }

    def answer(self, episode: Episode) -> str:
        """Return the final text of an episode; empty if it has none."""
        return self.protocol.final_text(episode)

    def protocol_for(self, query: Query) -> LimitedProtocol:
        """Return the team's protocol, or the one for a model alone, within the query's limits."""
        if query.mode != PAIR and len(self.protocol.roles) == 1:
            raise ImpossibleQuery("mode", f"is {query.mode!r}, but this team has one model; leave it out")
        limits = {"max_exchanges": query.max_turns, "episode_tokens": query.max_tokens}
        changes = {name: value for name, value in limits.items() if value is not None}
        config = self.config.model_copy(update={"protocol": self.config.protocol.model_copy(update=changes)})
        limited = LimitedProtocol(protocol_of(config, preset(SYSTEMS[query.mode])), query)
        for role in limited.roles:
            context = self.config.role(role).engine.max_model_len
            for name in ("max_tokens", "long_token_budget"):
                if (tokens := getattr(query, name) or 0) >= context:
                    what = (
                        f"is {tokens}, but the {role} model's context holds {context} tokens, the question's included"
                    )
                    raise ImpossibleQuery(name, what)
        return limited

    def _prepared(self, query: Query, problem: Problem) -> tuple[LimitedProtocol, dict[str, Any]]:
        """Return a query's protocol and engines; ImpossibleQuery if the question leaves no room for an answer."""
        limited, engines = self.protocol_for(query), self.engines()
        first = limited.next(())
        tokens, context = len(limited.render(problem, (), first, engines[first].tokenizer)), engines[first].context
        if tokens >= context:
            what = f"takes {tokens} tokens, but the {first} model's context holds {context}; ask a shorter one"
            raise QuestionTooLong("question", what)
        return limited, {role: engines[role] for role in limited.roles}

    def engines(self) -> Mapping[str, Any]:
        """Return the engine of each role of a running team, in the event loop in which it runs."""
        if self._pair is None:
            raise LongShortError(
                "this team has not been started; use `async with team:`, or `team.solve(…)` from ordinary code"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise LongShortError("this team runs in another event loop; `await` it there, or use `team.solve(…)`")
        return {role: policy.engine for role, policy in self._pair.policies.items()}

    def _decoding(self, query: Query) -> Decoding:
        settings = {name: getattr(query, name) for name in ("temperature", "top_p", "top_k")}
        own = {name: getattr(self.config, name) for name in settings}
        return Decoding(**own | {name: value for name, value in settings.items() if value is not None})


def _problem(query: Query) -> Problem:
    return Problem(id="ask", question=query.question, answer="")


def _queries(
    problems: str | Problem | Sequence[str | Problem], settings: Mapping[str, Any]
) -> list[tuple[Query, Problem]]:
    """Return each problem with its query; the same question asked twice has two seeds."""
    queries = []
    for number, each in enumerate([problems] if isinstance(problems, str | Problem) else problems):
        problem = each if isinstance(each, Problem) else Problem(id=f"problem-{number}", question=each, answer="")
        query = Query(question=problem.question, **settings)
        queries.append((replace(query, seed=stable_seed(query.seed, problem.id, 0)), problem))
    return queries


async def _warm(engine: Engine) -> None:
    """Sample an engine's first tokens, which take seconds, before anybody's question."""
    prompt = encode_problem(engine.tokenizer, "", CANARY_QUESTION)
    await engine.generate(prompt, Sampling(max_tokens=2, stop=(), temperature=1.0, seed=0))


async def _next(events: AsyncGenerator[Event, None]) -> Event | None:
    return await anext(events, None)
