"""Where a run may write: not into the folder of a Ray job, which goes with its files."""

import pytest

from longshort.evaluation.command import evaluate_recipe
from longshort.preflight.checks import check_output
from longshort.recipe.schema import LongShortConfig
from longshort.types import LongShortError


@pytest.fixture
def job_folder(tmp_path, monkeypatch):
    """The current folder, which Ray made for a job's files."""
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_0a1b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_a_relative_folder_in_a_ray_job_is_refused_with_the_remedy(job_folder):
    with pytest.raises(LongShortError) as error:
        check_output(LongShortConfig(output_dir="runs/x"))
    assert str(error.value) == (
        f"output_dir runs/x lies among the files of this Ray job ({job_folder}/runs/x), which Ray removes; give an "
        "absolute path that every node shares, such as output_dir=/shared/runs/x"
    )


def test_an_absolute_folder_inside_the_job_is_refused_too(job_folder):
    with pytest.raises(LongShortError, match="lies among the files of this Ray job"):
        check_output(LongShortConfig(output_dir=str(job_folder / "runs" / "x")))


def test_a_folder_that_leads_out_of_the_job_is_taken(job_folder, tmp_path):
    check_output(LongShortConfig(output_dir=str(tmp_path / "shared" / "x")))
    check_output(LongShortConfig(output_dir="../../../../shared/x"))


def test_an_evaluation_refuses_such_a_folder_before_it_looks_for_models(job_folder):
    with pytest.raises(LongShortError, match="lies among the files of this Ray job"):
        evaluate_recipe(LongShortConfig(output_dir="runs/x"))
