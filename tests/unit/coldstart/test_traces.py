"""Every row of a trace file becomes a Trace that says what it is; nothing is lost and nothing silently changed."""

import json

import pytest

from longshort.coldstart.traces import load_traces, unwrapped
from longshort.grading.pool import GradingPool
from longshort.types import LongShortError


@pytest.fixture(scope="module")
def pool():
    with GradingPool() as pool:
        yield pool


def load(tmp_path, pool, rows, limit=None):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_traces(str(path), limit, pool, 0)


def row(response, problem="1+1?", answer="2"):
    return {"problem": problem, "answer": answer, "response": response}


def test_every_kind_of_bad_row_has_a_name(tmp_path, pool):
    found = load(
        tmp_path,
        pool,
        [
            row("One.\n\nTwo. \\boxed{2}"),
            row("  \n"),
            {"problem": "1+1?", "answer": "2"},
            row("One.\n\nTwo.", answer="\\frac{"),
            {"response": "One.\n\nTwo."},
            row("One.\n\nTwo. \\boxed{2}"),
            row("Another.\n\nWay."),
            row("half a \ud83d character"),
        ],
    )
    assert [trace.outcome for trace in found] == [
        "ok", "empty_response", "empty_response", "gold_unparseable", "bad_row", "duplicate", "ok", "bad_row",
    ]  # fmt: skip
    assert (
        "the answer '\\\\frac{'" in found[3].detail
        and "line 5: no question" in found[4].detail
        and "line 6" in found[5].detail
    )
    assert found[6].notes == ("repeated_problem",) and len({trace.id for trace in found}) == 8


def test_unusual_text_is_noted_and_kept_byte_for_byte(tmp_path, pool):
    texts = ["a\r\n\r\nb", "é\u2028数", "<think>\nx\n\n</think>\ny </rethink>"]
    found = load(tmp_path, pool, [row(text, problem=f"{index}?") for index, text in enumerate(texts)])
    assert [trace.response for trace in found] == texts
    assert [trace.notes for trace in found] == [("crlf",), ("non_ascii",), ("think_wrapper", "role_tags")]


def test_only_the_wrapper_around_a_whole_trace_is_taken_off():
    wrapped = ["<think>\nOne.\n\n", "Two.\n</think>\n\n", "\\boxed{2}"]
    assert unwrapped(wrapped) == ["\nOne.\n\n", "Two.\n\n\n", "\\boxed{2}"]
    assert unwrapped(["One.\n\n", "Two.\n</think>\n\n", "3"]) == [
        "One.\n\n",
        "Two.\n\n\n",
        "3",
    ]  # no opening tag: R1's habit
    for kept in (
        ["It says </think> here.", "2"],
        ["a", "<think>b"],
        ["</think>\n", "</think>\n"],
        ["<think>a", "<think>b"],
    ):
        assert unwrapped(kept) == kept


def test_a_column_is_chosen_once_and_its_absence_said(tmp_path, pool):
    rows = [
        {"problem": "1?", "answer": "1", "generation": "a\n\nb"},
        {"problem": "2?", "answer": "2", "response": "c\n\nd"},
    ]
    assert [trace.outcome for trace in load(tmp_path, pool, rows)] == ["ok", "empty_response"]
    with pytest.raises(
        LongShortError,
        match=r"line 1: no response; expected a column response, trace, .*, got problem, answer, solution",
    ):
        load(tmp_path, pool, [{"problem": "1?", "answer": "1", "solution": "human"}])
    odd = {"id": "half \ud83d", "problem": "1?", "answer": "1", "response": "a\n\nb"}
    assert load(tmp_path, pool, [odd])[0].outcome == "bad_row"


def test_a_limit_takes_the_first_and_an_empty_source_is_refused(tmp_path, pool):
    assert len(load(tmp_path, pool, [row(f"{index}\n\nx") for index in range(5)], limit=2)) == 2
    with pytest.raises(LongShortError, match="holds no row"):
        load(tmp_path, pool, [])


def test_miniature_traces_are_of_the_kind_asked_for(pool):
    from longshort.miniature.world import products

    easy, hard = (load_traces(f"miniature:{kind}", 50, pool, 0) for kind in ("easy", "hard"))
    assert {products(trace.problem) for trace in easy} == {1}
    assert {products(trace.problem) for trace in hard} == {2, 3}
    assert len(easy) == len(hard) == 50 and sum(len(t.response) for t in hard) > 4 * sum(len(t.response) for t in easy)
    assert load_traces("miniature:hard", 50, pool, 0) == hard != load_traces("miniature:hard", 50, pool, 1)
    with pytest.raises(LongShortError, match="'hrad' is not known; known: train, easy, hard"):
        load_traces("miniature:hrad", 5, pool, 0)


def test_real_traces_all_load(shared_data, pool):
    found = load_traces(str(shared_data / "long_traces_amc23.jsonl"), None, pool, 0)
    assert len(found) == 120 and {trace.outcome for trace in found} == {"ok"}
    assert sum("think_wrapper" in trace.notes for trace in found) == 100
    assert not any("role_tags" in trace.notes for trace in found)
    assert sum("repeated_problem" in trace.notes for trace in found) == 80
