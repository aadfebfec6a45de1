"""A team whose engines follow a test's script, behind a real server on loopback."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn

from longshort.dialogue.encoding import encode_plain, special_ids
from longshort.dialogue.protocols import make_protocol
from longshort.evaluation.systems import System
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.schema import parse
from longshort.serving.server import Service
from longshort.team.folder import StoredTeam
from longshort.team.team import Team
from longshort.types import LONG, ROLES, SHORT, Completion, LongShortError

ANSWER = ((LONG, "a: 7.", "</think>"), (SHORT, "Total: 3", "</answer>"))
HAND_BACK = (
    (LONG, "a: 7.", "</think>"),
    (SHORT, "more?", "</rethink>"),
    (LONG, "+b: 6.", "</think>"),
    (SHORT, "it is 3", "</answer>"),
)
HANG, DIE, BUG = "hang", "die", "bug"


class ScriptedEngine:
    """Says the role's lines of the script, piece by piece; `asked` and `left` count calls and cancelled ones."""

    def __init__(self, role: str, team, context: int):
        self.role, self.team, self.tokenizer, self.context = role, team, build_tokenizer(role), context
        self.asked, self.left, self.samplings, self.prompts = 0, 0, [], []

    async def generate(self, prompt_ids, sampling, watch=None):
        self.asked += 1
        self.samplings.append(sampling)
        self.prompts.append(self.tokenizer.decode(list(prompt_ids)))
        own = [line for line in self.team.script if line[0] == self.role]
        said = (
            self.prompts[-1].count({LONG: "</think>", SHORT: "</rethink>"}[self.role])
            if self.team.follows
            else self.asked - 1
        )
        _, text, stop = own[min(said, len(own) - 1)]
        if stop == DIE:
            raise LongShortError(f"the {self.role} engine failed 4 times")
        if stop == BUG:
            raise KeyError("a bug of ours")
        ids = encode_plain(self.tokenizer, text)
        if stop.startswith("<"):
            ids += special_ids(self.tokenizer, (stop,))
        ids = ids[: sampling.max_tokens]
        for end in range(1, len(ids) if watch else 0):
            watch(ids[:end])
            await asyncio.sleep(0)
        try:
            await (asyncio.Event().wait() if stop == HANG else asyncio.sleep(self.team.delay))
        except asyncio.CancelledError:
            self.left += 1
            raise
        return Completion(token_ids=ids, logprobs=(-0.5,) * len(ids), text=text, stop=stop, version=0)


class ScriptedTeam(Team):
    """A Team of two scripted engines: everything but the models is the real thing."""

    def __init__(self, context: int = 200, **serve):
        engine = {"max_model_len": context, "max_num_seqs": 2}
        role = {"turn_tokens": 60, "instructions": "", "engine": engine}
        protocol = {"tags": "special", "max_exchanges": 2, "episode_tokens": 150, "final_notice": "Last turn. "}
        config = parse({"long": role, "short": role, "protocol": protocol, "temperature": 0.5, "serve": serve})
        system = System(name="pair", title="pair", models={}, protocol=make_protocol(config))
        super().__init__(StoredTeam(name="scripted", config=config, system=system))
        self.script, self.delay, self.follows = ANSWER, 0.0, True
        self.scripted = {role: ScriptedEngine(role, self, context) for role in ROLES}

    def engines(self):
        return self.scripted

    async def stats(self):
        if any(line[2] == DIE for line in self.script):
            raise LongShortError("the long engine failed 4 times")
        return {
            role: {
                "busy_s": 1.5,
                "sampled_tokens": 7,
                "prompt_tokens": 20,
                "cached_tokens": 5,
                "restarts": 1,
                "waiting": 0,
            }
            for role in ROLES
        }

    def play(self, *script, delay: float = 0.0) -> None:
        """What the engines say from now on; their counts start again."""
        self.script, self.delay = script, delay
        for engine in self.scripted.values():
            engine.asked, engine.left, engine.samplings, engine.prompts = 0, 0, [], []


class Served:
    """A team behind a real server: `url`, `service`, and `call` to run a coroutine in the server's loop."""

    def __init__(self, team: Team, **settings):
        self.team, self._settings = team, settings
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    async def _serve(self):
        self.loop = asyncio.get_running_loop()
        self.service = Service(self.team, name="scripted", **self._settings)
        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(self.service.app, log_config=None, lifespan="off"))
        self._ready.set()
        await self.server.serve(sockets=[listening])

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def until(self, condition, seconds: float = 10.0) -> None:
        """Wait until a condition holds in the server's loop."""

        async def watch():
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.005)

        self.call(watch())

    def stop(self):
        self.server.should_exit = True
        self._thread.join(30)


@contextlib.contextmanager
def served(team: Team | None = None, **settings) -> Iterator[Served]:
    server = Served(team or ScriptedTeam(), **settings)
    try:
        yield server
    finally:
        server.stop()
