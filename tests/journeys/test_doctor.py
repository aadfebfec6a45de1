"""`longshort doctor` on the environment that runs the tests, and its probes, which are processes of their own."""

import pytest

from longshort.planning import doctor


def states(rows):
    return {row.what: row.state for row in rows}


def test_this_environment_is_healthy():
    rows = doctor.doctor()
    assert [row for row in rows if row.state == "missing"] == []
    assert states(rows)["torch"] == "ok"


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("print(6 * 7)", (True, "42")),
        ("import sys; print('noise'); sys.exit('no such library')", (False, "no such library")),
        ("raise SystemExit(3)", (False, "ended with status 3")),
    ],
)
def test_a_probe_reports_what_broke(script, answer):
    assert doctor.probe(script) == answer


def test_a_probe_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.2)
    assert doctor.probe("import time; time.sleep(60)") == (False, "no answer within 0.2 s")


def test_a_probe_imports_no_file_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('the file of the working folder')")
    monkeypatch.chdir(tmp_path)
    assert doctor.probe("import colorsys; print(colorsys.rgb_to_hsv(0, 0, 0))") == (True, "(0.0, 0.0, 0)")
