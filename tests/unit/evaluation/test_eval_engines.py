"""How many engines an evaluation starts, who shares one, and which gives way; processes are fakes."""

import asyncio
from pathlib import Path

import pytest

from longshort.backends import ray_cluster
from longshort.evaluation.engines import Engines
from longshort.evaluation.systems import Model, System, in_order
from longshort.recipe.schema import parse
from longshort.runs.model_files import identity
from longshort.types import LONG, ROLES, SHORT, LongShortError


def model(folder: Path, weights: str = "w") -> str:
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_text(weights)
    return str(folder)


class FakeEngine:
    """Knows whether it runs; `log` gets what happens to it."""

    def __init__(self, role, folder, log):
        self.role, self.name, self.log, self.backend, self.alive = role, Path(folder).name, log, "fake", False

    async def start(self):
        self.alive = True
        self.log.append(f"+{self.name}")

    def close(self):
        self.alive = False
        self.log.append(f"-{self.name}")


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """`engines(config)` whose processes are fakes on a cluster of `there["gpus"]`, a log, and models a, b, … of
    either origin."""
    log, there = [], {"gpus": 0.0, "room": 9}
    monkeypatch.setattr(
        ray_cluster, "make_engine", lambda role, folder, config, tokenizer: FakeEngine(role, folder, log)
    )
    monkeypatch.setattr(ray_cluster, "gpus", lambda: there["gpus"])
    monkeypatch.setattr(ray_cluster, "room", lambda: there["room"])
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder, **_: None)

    def system(long, short=None):
        names = {LONG: long, SHORT: short} if short else {LONG: long}
        models = {role: Model(folder=model(tmp_path / name), origin=role) for role, name in names.items()}
        return System(name="".join(names.values()), title="", models=models, protocol=None)

    return log, there, system, tmp_path


def play(config, systems, after=lambda engines: None):
    """Go through systems with one Engines; returns the engines by role of each."""

    async def go():
        engines = Engines(config)
        given = [await engines.of(system) for system in systems]
        after(engines)
        engines.close()
        return given

    return asyncio.run(go())


def test_one_engine_per_model_serves_every_system_and_both_roles(cluster):
    log, _, system, folder = cluster
    shared = System(
        name="x", title="", models=dict.fromkeys(ROLES, Model(folder=str(folder / "a"), origin=LONG)), protocol=None
    )
    ab, a, both_a, ba = play(parse({}), [system("a", "b"), system("a"), shared, system("a", "b")])
    assert ab[LONG] is a[LONG] is both_a[LONG] is both_a[SHORT] is ba[LONG] and ab[SHORT] is ba[SHORT] is not ab[LONG]
    assert log == ["+a", "+b", "-a", "-b"]


def test_two_ways_to_write_a_folder_are_one_model(cluster):
    log, _, system, folder = cluster
    first = system("a")
    (folder / "link").symlink_to(folder / "a")
    roundabout = [str(folder / "link"), str(folder / "." / "b" / ".." / "a")]
    again = [
        System(name=way, title="", models={LONG: Model(folder=way, origin=LONG)}, protocol=None) for way in roundabout
    ]
    model(folder / "b")
    play(parse({}), [first, *again])
    assert log == ["+a", "-a"]


def test_one_model_in_two_roles_with_different_contexts_has_two_engines(cluster):
    """Sharing would give the long role the short one's context, and the results would not say so."""
    log, _, _, folder = cluster
    same = System(
        name="x", title="", models={r: Model(folder=model(folder / "a"), origin=r) for r in ROLES}, protocol=None
    )
    play(parse({}), [same])
    assert log == ["+a", "-a"]
    [given] = play(parse({"short": {"engine": {"max_model_len": 512}}}), [same])
    assert log[2:] == ["+a", "+a", "-a", "-a"] and (given[LONG].role, given[SHORT].role) == (LONG, SHORT)


def test_the_engine_that_waited_longest_gives_way_and_starts_again_where_it_is_needed(cluster):
    log, _, system, _ = cluster
    order = [system("a", "b"), system("c"), system("a"), system("d"), system("b", "a")]
    given = play(parse({"eval": {"max_engines": 3}}), order, lambda engines: log.append("end"))
    # d comes when b has waited longest, for a was used again after c; b comes when c has
    assert log[:-3] == ["+a", "+b", "+c", "-b", "+d", "-c", "+b", "end"]
    assert not any(engine.alive for roles in given for engine in roles.values())


def test_engines_make_room_on_a_cluster_with_few_gpus(cluster):
    log, there, system, _ = cluster
    there["gpus"] = 2.0
    config = parse({role: {"engine": {"num_gpus": 1.0}} for role in ROLES})
    play(config, [system("a", "b"), system("a", "c")])
    assert log == ["+a", "+b", "-b", "+c", "-a", "-c"]
    log.clear()
    there["gpus"] = 1.0  # too few for any pair: what a system needs is not closed for it all the same
    play(config, [system("a"), system("a", "b")])
    assert log == ["+a", "+b", "-a", "-b"]


def test_engines_make_room_on_a_cluster_with_few_cpus(cluster):
    """An actor too many would wait for a CPU until its start is given up."""
    log, there, system, _ = cluster
    there["room"] = 2
    play(parse({}), [system("a", "b"), system("a", "c")])
    assert log == ["+a", "+b", "-b", "+c", "-a", "-c"]


def test_an_engine_that_does_not_start_is_closed_with_the_others(cluster, monkeypatch):
    log, _, system, _ = cluster

    async def start(self):
        raise LongShortError("no memory")

    async def go():
        engines = Engines(parse({}))
        try:
            await engines.of(system("a", "b"))
        finally:
            engines.close()

    monkeypatch.setattr(FakeEngine, "start", start)
    with pytest.raises(LongShortError, match="no memory"):
        asyncio.run(go())
    assert log == ["-a", "-b"]


def test_systems_with_models_in_common_follow_each_other(cluster):
    _, _, system, _ = cluster
    ordered = in_order([system("a", "b"), system("c"), system("a", "d"), system("c", "d")])
    assert [each.name for each in ordered] == ["c", "cd", "ad", "ab"]


def test_weights_make_a_model_whatever_its_folder_is_called(tmp_path):
    one, copy, other = model(tmp_path / "one"), model(tmp_path / "copy"), model(tmp_path / "other", weights="v")
    assert identity(one, "long") == identity(copy, "long") != identity(other, "long")
    (tmp_path / "one" / "model.safetensors").write_text("v")
    assert identity(one, "long") == identity(other, "long")
