"""The trainer on tiny models: bit-equal resumption, signals, refusals, and two of the three ways in (the Ray job:
tests/journeys/test_launch.py).
"""

import asyncio
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest

from longshort import LongShortConfig, LongShortTrainer
from longshort.learning.loop import Step
from longshort.recorder import Recorder
from longshort.runs import checkpoint, lock
from longshort.types import LONG, SHORT, Completion, Episode, Group, LongShortError, Problem, Reward, Turn
from tests.support import tiny_models
from tests.support.training_runs import trainer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_models.make_speaking(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return tiny_models.make(tmp_path_factory.mktemp("untrained"))


def test_a_problem_whose_answer_cannot_be_graded_is_left_out_and_named(untrained, capsys):
    rows = [{"id": "fine", "problem": "1+1?", "answer": "2"}, {"id": "odd", "problem": "1+2?", "answer": "3 zorks"}]
    run = LongShortTrainer(long=untrained[LONG], short=untrained[SHORT], train_dataset=rows)
    assert [problem.id for problem in run.problems] == ["fine"]
    assert "1 of 2 reference answers cannot be graded and are left out: problem 'odd'" in capsys.readouterr().out


def test_problem_order_is_epochs_of_permutations_fixed_by_the_seed(tmp_path, untrained):
    run = trainer(tmp_path, untrained, seed=3)
    run.problems = run.problems[:6]
    ids = [problem.id for step in range(3) for problem in run.step_problems(step)]
    everything = sorted(problem.id for problem in run.problems)
    assert sorted(ids[:6]) == everything and sorted(ids[6:]) == everything and ids[:6] != ids[6:]
    assert [problem.id for problem in run.step_problems(1)] == ids[4:8]


def test_what_cannot_work_is_said_before_anything_starts(tmp_path, untrained):
    with pytest.raises(LongShortError, match=r"long\.model is empty"):
        LongShortTrainer(
            args=LongShortConfig(output_dir=str(tmp_path)), train_dataset=[{"problem": "1+1?", "answer": "2"}]
        )
    with pytest.raises(LongShortError, match="no training problems"):
        LongShortTrainer(long=untrained[LONG], short=untrained[SHORT], args=LongShortConfig(output_dir=str(tmp_path)))
    with pytest.raises(LongShortError, match=r"train_dataset\[1\]: no answer"):
        LongShortTrainer(
            long=untrained[LONG],
            short=untrained[SHORT],
            train_dataset=[{"problem": "a", "answer": "2"}, {"problem": "b"}],
        )


def test_a_checkpoint_of_other_settings_is_refused_with_both_values(tmp_path, untrained):
    first = trainer(tmp_path, untrained)
    folder = checkpoint.begin(first.output_dir, 1)
    final = checkpoint.commit(folder, {"step": 1, "recipe": first.config.model_dump(mode="json")})
    cheaper = tiny_models.role(untrained[LONG], kv_cache_gib=0.0625)
    again = trainer(tmp_path, untrained, save_steps=7, learning_rate=1e-4, long=cheaper)
    assert again.checkpoint_to_resume(True).folder == final
    with pytest.raises(LongShortError, match="holds checkpoints up to step 1; pass --resume"):
        trainer(tmp_path, untrained).checkpoint_to_resume(False)
    with pytest.raises(LongShortError, match=r"num_generations was 4 and is now 6"):
        trainer(tmp_path, untrained, num_generations=6).checkpoint_to_resume(True)


def test_a_finished_run_is_resumed_without_an_engine(tmp_path, untrained, capsys):
    finished = trainer(tmp_path, untrained, max_steps=2)
    folder = checkpoint.begin(finished.output_dir, 2)
    checkpoint.commit(folder, {"step": 2, "recipe": finished.config.model_dump(mode="json")})
    finished.folder.metrics.write_text('{"step": 2, "team/accuracy": 0.5}\n')
    assert finished.train(resume=True) == {"step": 2, "team/accuracy": 0.5}
    assert "checkpoint-2: all 2 steps are done; a larger max_steps goes on" in capsys.readouterr().out


def test_a_second_run_in_one_output_folder_is_refused(tmp_path, untrained):
    first = trainer(tmp_path, untrained)
    with lock.hold(first.output_dir), pytest.raises(LongShortError, match="belongs to another run"):
        trainer(tmp_path, untrained).train()


def test_the_first_step_of_a_run_sets_a_dead_runs_files_aside(tmp_path, untrained, monkeypatch):
    """A run that dies as soon as its loop begins."""

    async def loop(**settings):
        raise RuntimeError("the loop began")

    monkeypatch.setattr("longshort.trainer.train_loop", loop)
    run = trainer(tmp_path, untrained)
    run.folder.episodes.mkdir(parents=True)
    run.folder.metrics.write_text('{"step": 4}\n')
    with pytest.raises(RuntimeError, match="the loop began"):
        asyncio.run(run.run(SimpleNamespace(policies={}, pool=None)))
    assert not run.folder.metrics.exists()
    assert (run.output_dir / "replaced-1" / "metrics.jsonl").read_text() == '{"step": 4}\n'


def turn(role, prompt_ids, token_ids):
    completion = Completion(token_ids=token_ids, logprobs=(-0.5,) * len(token_ids), text="", stop="</think>", version=0)
    return Turn(role=role, prompt_ids=prompt_ids, completion=completion)


def step_of(*dialogues):
    """A finished step of one group, rewards 0, 1, …; both roles were updated."""
    problem = Problem(id="p", question="?", answer="1")
    episodes = tuple(Episode(problem=problem, turns=turns, stop="answered") for turns in dialogues)
    rewards = tuple(Reward(totals={LONG: float(i), SHORT: float(i)}, terms={}) for i in range(len(episodes)))
    group = Group(problem=problem, episodes=episodes, rewards=rewards)
    return Step(index=0, groups=(group,), updates={LONG: {}, SHORT: {}}, rollout_s=1.0, update_s=1.0)


def recorder_with(run, gaps):
    """Its learners are doubles that only know the gaps of their last update."""

    def policy(role):
        async def of_last_update():
            return gaps[role]

        return SimpleNamespace(gaps=of_last_update)

    return Recorder(
        run.config,
        run.steps,
        run.protocol,
        run.advantage,
        SimpleNamespace(policies={role: policy(role) for role in (LONG, SHORT)}),
    )


def write_episodes(recorder, step):
    gaps = {role: asyncio.run(recorder.pair.policies[role].gaps()) for role in step.updates}
    recorder.write_episodes(step, gaps)


def test_gaps_stand_on_the_lines_of_the_episodes_that_a_role_was_trained_on(tmp_path, untrained):
    """The short model says nothing in the first episode; the second taught neither role (None); the third taught
    both.
    """
    step = step_of(
        (turn(LONG, (1,), (7,)), turn(SHORT, (2,), ())),
        (turn(LONG, (1,), (7,)), turn(SHORT, (2,), (9,))),
        (turn(LONG, (1,), (7, 8)), turn(SHORT, (2,), (9,)), turn(LONG, (1, 7, 8, 4), (6,))),
    )
    run = trainer(tmp_path, untrained)
    recorder = recorder_with(run, {LONG: [[0.01], None, [0.1, 0.2, -0.3]], SHORT: [None, [0.4]]})
    write_episodes(recorder, step)
    assert [path.name for path in (run.output_dir / "episodes").iterdir()] == ["step-000001.jsonl"]
    rows = [json.loads(line) for line in (run.output_dir / "episodes" / "step-000001.jsonl").read_text().splitlines()]
    assert [row.get("gaps") for row in rows] == [{LONG: [0.01]}, None, {LONG: [0.1, 0.2, -0.3], SHORT: [0.4]}]
    assert [row["advantages"] for row in rows] == [{LONG: value, SHORT: value} for value in (-1.0, 0.0, 1.0)]
    assert (rows[2]["step"], rows[2]["reward"], len(rows[2]["turns"])) == (1, {LONG: 2.0, SHORT: 2.0}, 3)


def test_groups_whose_places_were_refilled_stand_last_and_trained_nobody(tmp_path, untrained):
    def one(ids):
        return (turn(LONG, (1,), ids),)

    step, other = step_of(one((7,)), one((8,))), step_of(one((9,)), one((9,)))
    even = replace(other.groups[0], rewards=other.groups[0].rewards[:1] * 2)
    run = trainer(tmp_path, untrained)
    write_episodes(recorder_with(run, {LONG: [[0.1], [0.2]], SHORT: []}), replace(step, replaced=(even,)))
    rows = [json.loads(line) for line in (run.output_dir / "episodes" / "step-000001.jsonl").read_text().splitlines()]
    assert [row["turns"][0]["token_ids"] for row in rows] == [[7], [8], [9], [9]]
    assert [row["advantages"][LONG] for row in rows] == [-0.5, 0.5, 0.0, 0.0]
    assert [row.get("gaps") for row in rows] == [{LONG: [0.1]}, {LONG: [0.2]}, None, None]


def test_writing_episodes_leaves_the_event_loop_to_the_rollouts(tmp_path, untrained, monkeypatch):
    """With staleness, the next rollouts are under way while a step is written."""

    async def no_metrics(self, step):
        return {}

    monkeypatch.setattr(Recorder, "_measure", no_metrics)
    monkeypatch.setattr(Recorder, "_print", lambda self, step: None)
    run, threads = trainer(tmp_path, untrained), []
    recorder = recorder_with(run, {LONG: [None], SHORT: []})
    recorder.advantage = lambda groups, role: threads.append(threading.current_thread()) or [[0.0]]
    run.output_dir.mkdir(parents=True)
    asyncio.run(recorder.after(step_of((turn(LONG, (1,), (7,)),))))
    assert len(threads) == 2
    assert threading.main_thread() not in threads


def test_gaps_of_other_samples_than_the_steps_are_refused(tmp_path, untrained):
    recorder = recorder_with(trainer(tmp_path, untrained), {LONG: [[0.1], [0.2]], SHORT: []})
    with pytest.raises(ValueError, match="zip"):
        write_episodes(recorder, step_of((turn(LONG, (1,), (7,)),)))


def test_a_half_written_file_of_episodes_never_has_its_name(tmp_path, untrained):
    whole, forgetful = (turn(LONG, (1,), (7,)),), (turn(LONG, (1,), (7,)), turn(LONG, (1, 8), (6,)))
    run = trainer(tmp_path, untrained)
    recorder = recorder_with(run, {LONG: [None, None], SHORT: []})
    with pytest.raises(ValueError, match="append-only"):
        write_episodes(recorder, step_of(whole, forgetful))
    path = run.output_dir / "episodes" / "step-000001.jsonl"
    assert not path.exists()
    write_episodes(recorder, step_of(whole, whole))
    first = path.read_text()
    with pytest.raises(ValueError, match="append-only"):
        write_episodes(recorder, step_of(whole, forgetful))
    assert path.read_text() == first and len(first.splitlines()) == 2
