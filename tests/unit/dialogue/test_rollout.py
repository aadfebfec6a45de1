"""Episodes against scripted engines: turns alternate, no episode waits for another, limits have names."""

import asyncio
from dataclasses import replace

import pytest

from longshort.dialogue.protocols import LongShort
from longshort.dialogue.rollout import Admission, Decoding, run_episode, run_group, stable_seed
from longshort.learning.loop import speaking_episodes, training_samples
from longshort.miniature.tokenizer import build_tokenizer
from longshort.types import LONG, SHORT, Completion, Episode, Group, Problem, Reward, Turn

PROBLEM = Problem(id="p", question="Last digit of a: 7+b: 6?", answer="3")
PROTOCOL = LongShort(
    turn_tokens={LONG: 9, SHORT: 9}, episode_tokens=60, tags="special", instructions={LONG: "", SHORT: ""}
)


class Scripted:
    """Answers from a list of (text, stop); keeps the prompts and samplings it was asked with."""

    context = 200

    def __init__(self, role, *script, delay=0.0):
        self.tokenizer, self.script, self.delay, self.asked = build_tokenizer(role), list(script), delay, []

    async def generate(self, prompt_ids, sampling):
        self.asked.append((tuple(prompt_ids), sampling))
        await asyncio.sleep(self.delay)
        text, stop = self.script[(len(self.asked) - 1) % len(self.script)]
        ids = (5,) * sampling.max_tokens if stop == "length" else (5, 6)
        return Completion(token_ids=ids, logprobs=(-0.5,) * len(ids), text=text, stop=stop, version=4)


def play(long, short, **decoding):
    return asyncio.run(run_episode(PROBLEM, {LONG: long, SHORT: short}, PROTOCOL, Decoding(**decoding), seed=1))


def test_two_exchanges_and_the_answer():
    long, short = (
        Scripted(LONG, ("a: 7.", "</think>")),
        Scripted(SHORT, ("7", "</rethink>"), ("\\boxed{3}", "</answer>")),
    )
    episode = play(long, short, temperature=0.7, top_p=0.9)
    assert [turn.role for turn in episode.turns] == [LONG, SHORT, LONG, SHORT] and episode.stop == "answered"
    sampling = long.asked[0][1]
    assert (sampling.max_tokens, sampling.stop, sampling.temperature, sampling.top_p) == (9, ("</think>",), 0.7, 0.9)
    assert short.asked[0][1].stop == ("</answer>", "</rethink>") and len(short.asked[0][1].stop_token_ids) == 2
    assert long.asked[0][1].seed != long.asked[1][1].seed


def test_never_ending_rethink_meets_the_turn_cap():
    episode = play(Scripted(LONG, ("a", "</think>")), Scripted(SHORT, ("b", "</rethink>")))
    assert episode.stop == "max_turns" and len(episode.turns) == 8


def test_a_cut_turn_names_its_limit():
    assert play(Scripted(LONG, ("a", "length")), Scripted(SHORT, ("b", "</answer>"))).stop == "turn_length"
    for role in (LONG, SHORT):
        long, short = Scripted(LONG, ("a", "</think>")), Scripted(SHORT, ("b", "</answer>"))
        cut = long if role == LONG else short
        cut.script = [("…", "length")]
        cut.context = (
            len(
                play(Scripted(LONG, ("a", "</think>")), Scripted(SHORT, ("b", "</answer>")))
                .turns[role == SHORT]
                .prompt_ids
            )
            + 4
        )
        episode = play(long, short)
        assert (episode.stop, len(episode.turns[-1].completion.token_ids)) == ("context", 4)


def test_a_prompt_longer_than_the_context_is_an_episode_of_no_turns():
    long = Scripted(LONG, ("a", "</think>"))
    long.context = 5
    episode = play(long, Scripted(SHORT, ("b", "</answer>")))
    assert (episode.stop, episode.turns, long.asked) == ("context", (), [])


def test_a_slow_episode_does_not_hold_up_the_others():
    """Seven fast episodes end before the slow one's first turn does: nothing waits for a turn of all episodes."""
    finished = []

    async def episode(name, delay):
        policies = {
            LONG: Scripted(LONG, ("a", "</think>"), delay=delay),
            SHORT: Scripted(SHORT, ("b", "</answer>"), delay=delay),
        }
        await run_episode(replace(PROBLEM, id=name), policies, PROTOCOL, Decoding(), seed=0)
        finished.append(name)

    async def all_of_them():
        await asyncio.gather(episode("slow", 0.2), *(episode(f"fast{i}", 0.001) for i in range(7)))

    asyncio.run(all_of_them())
    assert finished[-1] == "slow" and len(finished) == 8


def score(problem, episodes, progress):
    return [Reward(totals={LONG: float(i), SHORT: float(i)}, terms={"correct": 1.0}) for i, _ in enumerate(episodes)]


def test_a_group_has_its_own_seeds_and_a_reward_per_episode():
    long, short = Scripted(LONG, ("a", "</think>")), Scripted(SHORT, ("b", "</answer>"))
    policies = {LONG: long, SHORT: short}
    group = asyncio.run(
        run_group(
            PROBLEM,
            policies,
            PROTOCOL,
            score,
            3,
            Decoding(),
            seed=5,
            progress=0.0,
            admission=Admission(live=9, starting=9),
        )
    )
    assert [reward.totals[LONG] for reward in group.rewards] == [0.0, 1.0, 2.0]
    assert len({sampling.seed for _, sampling in long.asked}) == 3


def test_seeds_are_the_same_in_every_process():
    assert stable_seed(0, "mini-1", 2) == 135786975 and stable_seed(0, "mini-1", 2) != stable_seed(0, "mini-1", 3)


def test_a_role_that_never_spoke_trains_nothing():
    long = Scripted(LONG, ("a", "length"))
    policies = {LONG: long, SHORT: Scripted(SHORT, ("b", "</answer>"))}
    group = asyncio.run(
        run_group(
            PROBLEM,
            policies,
            PROTOCOL,
            score,
            2,
            Decoding(),
            seed=5,
            progress=0.0,
            admission=Admission(live=9, starting=9),
        )
    )
    assert training_samples([group], SHORT, lambda groups, role: [[1.0, 1.0]]) == []
    assert len(training_samples([group], LONG, lambda groups, role: [[1.0, 1.0]])) == 2


def group_of(*sampled):
    """Make episodes of one short turn each with these ids; without ids the model had its turn and said nothing."""
    episodes = []
    for ids in sampled:
        completion = Completion(token_ids=ids, logprobs=(-0.5,) * len(ids), text="", stop="length", version=0)
        episodes.append(
            Episode(
                problem=PROBLEM, turns=(Turn(role=SHORT, prompt_ids=(1,), completion=completion),), stop="turn_length"
            )
        )
    reward = Reward(totals={LONG: 0.0, SHORT: 0.0}, terms={})
    return Group(problem=PROBLEM, episodes=tuple(episodes), rewards=(reward,) * len(episodes))


def test_training_samples_stand_beside_the_episodes_that_they_came_from():
    groups = [group_of((7,), ()), group_of((), (8, 8), (9,))]
    samples = training_samples(groups, SHORT, lambda groups, role: [[0.1, 0.2], [0.3, 0.4, 0.5]])
    assert [(sample.token_ids[1:], sample.advantages[1]) for sample in samples] == [
        ((7,), 0.1),
        ((8, 8), 0.4),
        ((9,), 0.5),
    ]
    names = [["a", "b"], ["c", "d", "e"]]
    assert list(speaking_episodes(groups, SHORT, names)) == [
        (groups[0].episodes[0], "a"),
        (groups[1].episodes[1], "d"),
        (groups[1].episodes[2], "e"),
    ]
    assert list(speaking_episodes(groups, LONG, names)) == []
    with pytest.raises(ValueError, match="zip"):
        list(speaking_episodes(groups, SHORT, [["a", "b"], ["c", "d"]]))
