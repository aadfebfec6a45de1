"""`longshort doctor` on the environment that runs the tests."""

from longshort.planning import doctor


def states(rows):
    return {row.what: row.state for row in rows}


def test_this_environment_is_healthy():
    rows = doctor.doctor()
    assert [row for row in rows if row.state == "missing"] == []
    assert states(rows)["torch"] == "ok"
