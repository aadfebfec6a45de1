"""Requests per second through the endpoint, against the two engines alone on the same tokens.

    python -m tests.benchmarks.serving [TEAM]

TEAM: as `longshort serve` takes it; without one, a pair of tiny models is trained first

The server as `longshort serve` runs it, in this process; 128 clients on loopback in another one
(tests/benchmarks/http_load.py), each sending its next question when the last is answered. Each engine decodes 32
messages at once, and 96 episodes go on; the others wait. The bound: every message that the engines were asked for in
a run, handed to the same kind of engine in one go, with nobody waiting for an answer and nothing around it; both
engines at the same time, as in serving; the later one to finish counts. One warm-up, then the runs, each with new
questions, whole and streamed. At the end a burst of more clients than there are places.

First with vLLM on this machine's cores, which server and clients need too, then with engines in the same processes
whose work is a sleep of 15 ms a step: what serving costs where engines have devices of their own.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest.mock import patch

import ray

from longshort.backends import ray_cluster
from longshort.backends.engines.vllm_engine import ENVIRONMENT
from longshort.miniature.world import make_problems
from longshort.recipe.schema import dump
from longshort.serving.command import listen
from longshort.serving.server import Listener, Service
from longshort.team.team import Team
from tests.benchmarks.common import RESULTS, Alone, Figure, leave, say, spread
from tests.benchmarks.sleeping import TalkingCore, remote_engine
from tests.support import tiny_models

CLIENTS, SLOTS, REQUESTS, QUEUE, BURST, SLEEP_S = 128, 32, 768, 128, 512, 0.015
WANTED = 0.8


class Recorded:
    """A team's engine that keeps what it was asked and counts what it sampled."""

    def __init__(self, engine):
        self.requests, self.tokens, self._generate = [], 0, engine.generate
        engine.generate = self.generate

    async def generate(self, prompt_ids, sampling, watch=None):
        self.requests.append((tuple(prompt_ids), sampling))
        completion = await self._generate(prompt_ids, sampling, watch)
        self.tokens += len(completion.token_ids)
        return completion

    def taken(self):
        requests, tokens, self.requests, self.tokens = self.requests, self.tokens, [], 0
        return requests, tokens


class Clients:
    """The process that plays the clients."""

    async def start(self, port):
        pipe = asyncio.subprocess.PIPE
        module = ["-m", "tests.benchmarks.http_load", "127.0.0.1", str(port)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *module, stdin=pipe, stdout=pipe, limit=2**26
        )

    async def load(self, clients, bodies):
        self._process.stdin.write(json.dumps({"clients": clients, "bodies": bodies}).encode() + b"\n")
        return json.loads(await self._process.stdout.readline())

    def stop(self):
        if self._process.returncode is None:
            self._process.kill()


def bodies(run, count, stream):
    """New questions for each run."""
    problems = make_problems("test", count, 1000 + 2 * run + stream)
    return [
        {"messages": [{"role": "user", "content": p.question}], "seed": number, "stream": stream}
        for number, p in enumerate(problems)
    ]


async def measured(clients, engines, alone, run, stream):
    """One run: what the clients saw, the seconds of the bound, the processor seconds of server and clients per
    request.
    """
    questions = bodies(run, REQUESTS, stream)
    used = time.process_time()
    seen = await clients.load(CLIENTS, questions)
    server_s = time.process_time() - used
    work = {role: engine.taken() for role, engine in engines.items()}
    bare = await asyncio.gather(*(alone[role].run.remote(requests) for role, (requests, _) in work.items()))
    for (role, (_, tokens)), (_, same) in zip(work.items(), bare, strict=True):
        if same != tokens:
            say(f"  the {role} engine alone sampled {same} tokens, serving {tokens}: not the same work")
    bound = max(seconds for seconds, _ in bare)
    failed = [status for status, *_ in seen["answers"] if status != 200]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, e.g. with {failed[0]}")
    tokens = sum(tokens for _, tokens in work.values())
    cpu = [1000 * seconds / REQUESTS for seconds in (server_s, seen["cpu_s"])]
    each = ", ".join(f"{seconds:.2f}" for seconds, _ in bare)
    say(
        f"run {run} {'streamed' if stream else 'whole'}: {REQUESTS} requests, {tokens} tokens in "
        f"{seen['seconds']:.2f} s, "
        f"engines alone {each} s; processor time per request: server {cpu[0]:.1f} ms, clients {cpu[1]:.1f} ms"
    )
    return {
        "seconds": seen["seconds"],
        "bound": bound,
        "answers": seen["answers"],
        "server_ms": cpu[0],
        "clients_ms": cpu[1],
    }


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(name, runs, stream):
    """The rows of one way to ask."""
    kind = f"{'streamed' if stream else 'whole'}, {name}"
    server, client = (median(run[key] for run in runs) for key in ("server_ms", "clients_ms"))
    cause = f"Server and clients take {server:.1f} and {client:.1f} ms of processor time per request"
    if name == "vLLM":
        cause += (
            "; the engines decode on the same cores, where the less busy one takes many small steps, "
            "each nearly as long as a full one"
        )
    rows = [
        Figure(
            what=f"requests per second, {kind}, of the engines' alone",
            values=tuple(run["bound"] / run["seconds"] for run in runs),
            ideal=(1.0,),
            limit="both engines alone, all messages at once",
            at_least=WANTED,
            cause=f"{cause}.",
        ),
        Figure(
            what=f"requests per second, {kind}", values=tuple(REQUESTS / run["seconds"] for run in runs), form="{:.1f}"
        ),
    ]
    for point, share in (("p50", 0.5), ("p95", 0.95)):
        ends = tuple(percentile([end for _, _, end in run["answers"]], share) for run in runs)
        rows.append(Figure(what=f"seconds to the end of an answer, {kind}, {point}", values=ends))
        if stream:
            firsts = tuple(
                percentile([first for _, first, _ in run["answers"] if first is not None], share) for run in runs
            )
            rows.append(Figure(what=f"seconds to the first text, {kind}, {point}", values=firsts))
    return rows


async def burst(clients, gate):
    """More clients than places, once each."""
    seen = await clients.load(BURST, bodies(-1, BURST, False))
    statuses = [status for status, *_ in seen["answers"]]
    refusals = [end for status, _, end in seen["answers"] if status == 429]
    taken, others = statuses.count(200), BURST - statuses.count(200) - len(refusals)
    return (
        f"burst of {BURST} clients on {gate.capacity + gate.max_queue} places: {taken} answered within "
        f"{seen['seconds']:.1f} s, "
        f"{len(refusals)} refused with 429 (95 % of them within {percentile(refusals, 0.95):.2f} s), {others} failed "
        "otherwise"
    )


class AloneAsleep(Alone):
    """As Alone, with a core whose work is a sleep."""

    def __init__(self, *arguments):
        self.core = TalkingCore(*arguments)


def digit(tokenizer):
    return tokenizer.convert_tokens_to_ids("7")


def sleeper(name, model, config, tokenizer, **_):
    """In the place of `ray_cluster.make_engine`."""
    return remote_engine(name, config, tokenizer, TalkingCore, SLOTS, SLEEP_S, digit(tokenizer))


def by_itself(name, model, engine, tokenizer):
    """An actor that holds the same kind of engine without anything around it."""
    options = {"num_cpus": 0.1}
    if name == "work a sleep":
        return ray.remote(AloneAsleep).options(**options).remote(SLOTS, SLEEP_S, digit(tokenizer))
    return ray.remote(Alone).options(**options, runtime_env={"env_vars": ENVIRONMENT}).remote(model, engine)


async def serve(name, source, runs):
    """(figures, notes) of the server over one kind of engines."""
    sizes = [f"{role}.engine.max_num_seqs={SLOTS}" for role in ("long", "short")]
    team = Team.from_pretrained(source, overrides=[*sizes, f"serve.max_queue={QUEUE}"])
    async with contextlib.AsyncExitStack() as undo:
        if name == "work a sleep":
            undo.enter_context(patch.object(ray_cluster, "make_engine", sleeper))
        await undo.enter_async_context(team)
        engines = {role: Recorded(engine) for role, engine in team.engines().items()}
        alone = {
            role: by_itself(name, team.models[role], team.config.role(role).engine, engine.tokenizer)
            for role, engine in team.engines().items()
        }
        listening = undo.enter_context(contextlib.closing(listen("127.0.0.1", 0)))
        service = Service(team, name="team")
        server = Listener(service.app)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        clients = Clients()
        await clients.start(listening.getsockname()[1])
        undo.callback(clients.stop)
        seen = {False: [], True: []}
        say(f"{name}:")
        for run in range(runs + 1):
            for stream, kept in seen.items():
                one = await measured(clients, engines, alone, run, stream)
                if run:
                    kept.append(one)
        overload = await burst(clients, service.gate)
        clients.stop()
        server.should_exit = True
        await serving
    rows = [row for stream, kept in seen.items() for row in figures(name, kept, stream)]
    busy = [spread([run[key] for run in seen[False]], "{:.1f}") for key in ("server_ms", "clients_ms")]
    return rows, [
        f"{name}: processor time per whole request: server {busy[0]} ms, clients {busy[1]} ms",
        f"{name}: {overload}",
    ]


async def main(source, runs, results):
    config = Team.from_pretrained(source).config
    undo = ray_cluster.start(config)
    try:
        found = [await serve(name, source, runs) for name in ("vLLM", "work a sleep")]
    finally:
        undo()
    leave(
        "serving",
        __doc__,
        [row for rows, _ in found for row in rows],
        results,
        [note for _, notes in found for note in notes],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("team", nargs="?", help="a team folder, a checkpoint, a run's folder or a recipe")
    parser.add_argument("--runs", type=int, default=5, help="how often everything is measured (default %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the folder that gets the figures")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not asked.team:
            say("training two tiny models for a few steps")
            recipe = Path(scratch) / "recipe.yaml"
            recipe.write_text(dump(tiny_models.config(Path(scratch), tiny_models.make_speaking(Path(scratch)))))
            asked.team = str(recipe)
        asyncio.run(main(asked.team, asked.runs, asked.results))
