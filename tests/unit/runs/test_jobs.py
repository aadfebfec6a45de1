"""The progress file of a job that runs in a process of its own."""

import json

from longshort.runs import job_progress
from longshort.runs.job_progress import JobProgress


def test_what_is_left_is_told_from_the_pace_of_this_part_alone(tmp_path, monkeypatch):
    clock = iter([100.0, 102.0, 102.0, 110.0, 110.0])
    monkeypatch.setattr(job_progress.time, "monotonic", lambda: next(clock))
    progress = JobProgress(tmp_path)  # at 100 s

    progress(41, 45, 0.5)  # continued after step 40: one step in 2 s
    assert json.loads((tmp_path / job_progress.PROGRESS).read_text()) == {
        "step": 41,
        "steps": 45,
        "loss": 0.5,
        "left_s": 8.0,
    }
    progress(45, 45, 0.1)
    assert json.loads((tmp_path / job_progress.PROGRESS).read_text())["left_s"] == 0
