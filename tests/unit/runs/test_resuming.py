"""Where a run begins: what may be continued, and what an earlier run has left behind."""

import pytest

from longshort.recipe.schema import parse
from longshort.runs import checkpoint
from longshort.runs.files import move_aside
from longshort.runs.layout import RunFolder
from longshort.runs.resuming import checkpoint_to_resume, last_metrics
from longshort.types import LongShortError


@pytest.fixture
def config(tmp_path):
    def make(**settings):
        return parse({"output_dir": str(tmp_path / "run"), "max_steps": 2} | settings)

    return make


def save(config, step):
    folder = checkpoint.begin(RunFolder.of(config).root, step)
    return checkpoint.commit(folder, {"step": step, "recipe": config.model_dump(mode="json")})


def dead(config, *names):
    """Leave what a run that died before its first checkpoint leaves."""
    for name in names or ("metrics.jsonl", "episodes/step-000001.jsonl", "recipe.yaml"):
        path = RunFolder.of(config).root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"step": 1}\n')


def refusal(config, resume):
    with pytest.raises(LongShortError) as caught:
        checkpoint_to_resume(config, resume)
    return str(caught.value)


def test_a_new_run_in_a_folder_with_steps_but_no_checkpoint_is_refused_with_their_names(config):
    dead(config())
    assert refusal(config(seed=7), False).endswith(
        "holds no checkpoint, but metrics.jsonl, episodes of an earlier run; pass --resume to set them aside and start "
        "from the beginning, or choose another"
    )


@pytest.mark.parametrize("name", ["eval/training.json", "tensorboard/events", "episodes/step-000003.jsonl"])
def test_every_file_of_a_step_counts(config, name):
    dead(config(), name)
    assert f"but {name.partition('/')[0]} of an earlier run" in refusal(config(), False)


def test_what_a_cold_start_or_an_evaluation_made_does_not_stand_in_the_way(config):
    dead(config(), "thoughts/sft.jsonl", "stages/coldstart.json", "eval/results.json", "recipe.yaml", "run.lock")
    assert checkpoint_to_resume(config(), False) is None


def test_resume_starts_from_the_beginning_where_nothing_was_saved(config, capsys):
    assert checkpoint_to_resume(config(), True) is None
    assert "yet: starting from the beginning" in capsys.readouterr().out


def test_resume_starts_from_the_beginning_where_a_run_died_before_its_first_checkpoint(config):
    dead(config())
    assert checkpoint_to_resume(config(seed=7), True) is None


def test_files_of_later_steps_are_set_aside_and_the_others_stay(config):
    run = RunFolder.of(config())
    dead(config(), "metrics.jsonl", *(f"episodes/step-{step:06d}.jsonl" for step in (1, 2, 3)))
    newer = save(config(), 3)
    aside = move_aside(run.root, run.of_steps(after=1))
    assert sorted(path.name for path in run.episodes.iterdir()) == ["step-000001.jsonl"]
    assert sorted(path.relative_to(aside).as_posix() for path in aside.glob("*/*.jsonl")) == [
        "episodes/step-000002.jsonl",
        "episodes/step-000003.jsonl",
    ]
    assert (aside / newer.name / "manifest.json").is_file()
    assert run.metrics.is_file()


def test_nothing_is_set_aside_where_there_is_nothing(tmp_path):
    assert move_aside(tmp_path, []) is None
    assert list(tmp_path.iterdir()) == []


def test_more_steps_go_on_where_the_run_ended(config, capsys):
    folder = save(config(), 2)
    assert checkpoint_to_resume(config(max_steps=4), True).folder == folder
    says = "max_steps was 2 and is now 4: after step 2 the learning rate and the reward's ramp go on as in a run of 4"
    assert says in capsys.readouterr().out


def test_fewer_steps_are_refused(config):
    save(config(max_steps=4), 2)
    assert "max_steps was 4 and is now 2; restore it" in refusal(config(), True)


def test_more_steps_are_refused_where_the_rounds_of_the_schedule_would_change(config):
    save(config(schedule=["long", "short"]), 2)
    assert "max_steps was 2 and is now 4; restore it" in refusal(config(max_steps=4, schedule=["long", "short"]), True)


def test_a_checkpoint_of_another_run_is_not_mixed_with_the_steps_of_this_one(config, tmp_path):
    other = save(config(), 2)
    here = config(output_dir=str(tmp_path / "here"))
    assert checkpoint_to_resume(here, other).folder == other
    dead(here)
    assert "holds steps of another run; choose an output_dir without any" in refusal(here, other)


def test_a_checkpoint_of_the_mixture_is_no_start_for_the_pair(config):
    folder = checkpoint.commit(checkpoint.begin(RunFolder.of(config()).mixture, 2), {"step": 2})
    assert "is no checkpoint of a pair" in refusal(config(), folder)


def test_the_checkpoint_to_resume_may_be_in_the_home_folder(config, tmp_path, monkeypatch):
    save(config(), 2)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checkpoint_to_resume(config(), "~/run/checkpoint-2").facts["step"] == 2


def test_the_last_metrics_are_those_of_the_last_row(config):
    assert last_metrics(RunFolder.of(config())) == {}
    dead(config())
    assert last_metrics(RunFolder.of(config())) == {"step": 1}


@pytest.mark.parametrize("torn", ['{"st', "\0\0\0", "\n"])
def test_the_last_metrics_are_whole_where_the_last_line_is_torn(config, torn):
    dead(config())
    RunFolder.of(config()).metrics.write_text('{"step": 1}\n' + torn)
    assert last_metrics(RunFolder.of(config())) == {"step": 1}


def older(config):
    """Save a checkpoint whose version knew neither `refill` nor `long.turn_tokens`."""
    recipe = config().model_dump(mode="json")
    del recipe["refill"], recipe["long"]["turn_tokens"]
    folder = checkpoint.begin(RunFolder.of(config()).root, 2)
    return checkpoint.commit(folder, {"step": 2, "recipe": recipe})


def test_a_setting_that_an_older_version_did_not_have_had_its_default(config):
    older(config)
    assert checkpoint_to_resume(config(), True).facts["step"] == 2
    assert "refill was 0 and is now 3" in refusal(config(refill=3), True)


def test_a_checkpoint_without_a_recipe_that_is_one_is_refused(config):
    folder = checkpoint.commit(checkpoint.begin(RunFolder.of(config()).root, 4), {"step": 4, "recipe": "x"})
    assert "is no checkpoint of a pair" in refusal(config(), folder)
