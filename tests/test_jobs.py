"""The progress file of a job that runs in a process of its own."""

import json

from longshort.backends import jobs


def test_what_is_left_is_told_from_the_pace_of_this_part_alone(tmp_path, monkeypatch):
    clock = iter([100.0, 102.0, 102.0, 110.0, 110.0])
    monkeypatch.setattr(jobs.time, "monotonic", lambda: next(clock))
    progress = jobs.Progress(tmp_path)  # at 100 s

    progress(41, 45, 0.5)  # continued after step 40: one step in 2 s
    assert json.loads((tmp_path / jobs.PROGRESS).read_text()) == {"step": 41, "steps": 45, "loss": 0.5, "left_s": 8.0}
    progress(45, 45, 0.1)
    assert json.loads((tmp_path / jobs.PROGRESS).read_text())["left_s"] == 0
