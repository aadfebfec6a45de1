"""A step's file survives a kill at any byte, is never mixed with other settings, and counts every outcome."""

import json

import pytest

from longshort.runs.ledger import Ledger, read, set_aside
from longshort.types import LongShortError

SETTINGS, INPUTS = {"n": 8, "rule": "metric"}, {"chunk": "ab12"}


def row(trace, outcome="ok", **values):
    return {"id": trace, "outcome": outcome, **values}


def test_lines_are_kept_in_the_order_of_the_traces_and_counted(tmp_path):
    ledger = Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    for one in (row("b", text="é\r\n\u2028"), row("a", "one_paragraph", notes=["crlf"]), row("c", notes=["crlf"])):
        ledger.append(one)
    ledger.finish(["a", "b", "c"], {"mean": 2})
    assert [one["id"] for one in read(tmp_path / "chunk.jsonl")] == ["a", "b", "c"]
    assert list(read(tmp_path / "chunk.jsonl"))[1]["text"] == "é\r\n\u2028"
    manifest = json.loads((tmp_path / "chunk.manifest.json").read_text())
    assert manifest["complete"] and manifest["settings"] == SETTINGS and manifest["inputs"] == INPUTS
    assert manifest["counts"] == {
        "traces": 3,
        "outcomes": {"one_paragraph": 1, "ok": 2},
        "notes": {"crlf": 2},
        "mean": 2,
    }
    assert Ledger(tmp_path, "chunk", SETTINGS, INPUTS).complete


def test_a_kill_at_any_byte_loses_at_most_the_line_being_written(tmp_path):
    ledger = Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    for trace in "abc":
        ledger.append(row(trace, text="数学"))
    whole = ledger.path.read_bytes()
    length = len(whole) // 3
    for cut in range(len(whole)):
        ledger.path.write_bytes(whole[:cut])
        again = Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
        whole_lines = (cut + 1) // length  # a line that lacks nothing but its end counts
        assert list(again.rows) == list("abc")[:whole_lines]
        again.append(row("z"))
        assert [one["id"] for one in read(ledger.path)] == [*list("abc")[:whole_lines], "z"]


@pytest.mark.parametrize(
    ("settings", "inputs", "says"),
    [
        (SETTINGS | {"n": 16}, INPUTS, "made with n = 8, now 16; make it and what follows again with --redo chunk"),
        (SETTINGS, {"chunk": "cd34"}, "made with chunk = 'ab12', now 'cd34'"),
    ],
)
def test_other_settings_or_inputs_are_refused_with_both_values(tmp_path, settings, inputs, says):
    Ledger(tmp_path, "chunk", SETTINGS, INPUTS).append(row("a"))
    with pytest.raises(LongShortError, match=says):
        Ledger(tmp_path, "chunk", settings, inputs)
    kept = set_aside(tmp_path, ["chunk", "rows"])
    assert [one["id"] for one in read(kept / "chunk.jsonl")] == ["a"] and set_aside(tmp_path, ["chunk"]) is None
    assert Ledger(tmp_path, "chunk", settings, inputs).rows == {}


def test_settings_may_change_while_there_is_no_line(tmp_path):
    Ledger(tmp_path, "chunk", {"traces": "a typo"}, {})
    assert Ledger(tmp_path, "chunk", SETTINGS, INPUTS).made_from["settings"] == SETTINGS


def test_lines_without_a_manifest_are_refused_and_kept(tmp_path):
    ledger = Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    ledger.append(row("a"))
    ledger.manifest_path.unlink()
    with pytest.raises(LongShortError, match=r"has lines but chunk\.manifest\.json, .* is missing"):
        Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    assert len(list(read(ledger.path))) == 1


def test_a_damaged_line_in_the_middle_costs_its_own_trace_only(tmp_path):
    ledger = Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    for trace in "abc":
        ledger.append(row(trace))
    first, _, last = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(first + b'{"id": "b", "ou' + last)
    assert list(Ledger(tmp_path, "chunk", SETTINGS, INPUTS).rows) == ["a"]
    ledger.path.write_bytes(first + b'{"id": "b", "ou\n' + last)
    assert list(Ledger(tmp_path, "chunk", SETTINGS, INPUTS).rows) == ["a", "c"]


def test_damage_in_a_finished_file_is_refused_by_line(tmp_path):
    ledger = Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    for trace in "ab":
        ledger.append(row(trace))
    ledger.finish(["a", "b"], {})
    ledger.path.write_bytes(ledger.path.read_bytes()[:-4])
    with pytest.raises(LongShortError, match=r"chunk.jsonl, line 2: damaged .*--redo"):
        Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
    ledger.path.write_bytes(ledger.path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(LongShortError, match="has 1 lines, its manifest says 2"):
        Ledger(tmp_path, "chunk", SETTINGS, INPUTS)
