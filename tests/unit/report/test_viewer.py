"""The episodes that a report embeds: which it takes, what it says about damage, and what it packs."""

import json

import pytest

from longshort.report.run_files import RunFiles
from longshort.report.viewer import collect, shares
from longshort.runs.layout import RunFolder
from longshort.types import LONG, ROLES, SHORT
from tests.support.report_runs import (
    HOSTILE,
    SHOWN_HOSTILE,
    graded,
    tokenizer,
    trained,
    turn,
    write_graded,
    write_lines,
)

TINY = [turn(LONG, "1", "</think>")]


def run_of(folder):
    return RunFiles(name="r", folder=RunFolder(folder))


def collected(folder, most=99, size_mb=40.0):
    """What the page gets: the viewer, its items, and the remarks."""
    viewer = collect([run_of(folder)], most, size_mb, remarks := [])
    return viewer, [json.loads(item) for item in viewer.items], remarks


def write_step(folder, step, rows):
    path = folder / f"episodes/step-{step:06d}.jsonl"
    write_lines(path, rows)
    return path


def save_tokenizers(folder):
    for role in ROLES:
        tokenizer(role).save_pretrained(folder / "checkpoint-2" / role)


def test_shares_by_hand():
    assert shares([5, 100, 100], 25) == [5, 10, 10]
    assert shares([9, 9], 99) == [9, 9]
    assert shares([8] * 4, 2) == [1, 1, 0, 0]
    assert shares([], 5) == []


def test_evaluations_come_first_then_the_newest_step(tmp_path):
    for step in (1, 2, 10):
        write_step(tmp_path, step, [trained(step, TINY)] * 2)
    write_graded(tmp_path, [graded(TINY), graded(TINY, right=False)], system="qwen2.5")
    viewer, _, _ = collected(tmp_path, most=7)
    sources = [(entry["source"], entry.get("step")) for entry in viewer.index]
    first = ("final · qwen2.5 · math · greedy", None)
    assert sources == [first] * 2 + [("training", 10)] * 2 + [("training", 2)] * 2 + [("training", 1)]
    assert viewer.total == 8
    assert [entry["verdict"] for entry in viewer.index[:3]] == ["right", "wrong", "right"]


def test_damaged_lines_are_counted_and_the_others_shown(tmp_path):
    path = write_step(tmp_path, 1, [trained(1, TINY), {"loss": 0.5}, trained(1, TINY)])
    path.write_bytes(path.read_bytes() + b"[" * 100_000 + b"\n\n" + b'{"problem": {"id": "c"')
    (tmp_path / "eval/final").mkdir(parents=True)
    (tmp_path / "eval/final/unnamed.jsonl").write_text("{}\n")
    viewer, _, remarks = collected(tmp_path)
    assert [entry["key"][-2:] for entry in viewer.index] == [":1", ":3"]
    assert "3 damaged lines skipped in r/episodes/step-000001.jsonl." in remarks
    assert "1 files of r/eval/final do not say what they hold; their episodes are left out." in remarks


def test_hostile_text_is_inert_and_whole(tmp_path):
    write_step(tmp_path, 1, [trained(1, [turn(LONG, HOSTILE, "</think>")], question=HOSTILE)])
    viewer, items, _ = collected(tmp_path)
    assert "<" not in viewer.items[0]
    assert "\u2028" not in viewer.items[0]
    assert items[0]["question"] == items[0]["turns"][0][1] == SHOWN_HOSTILE


def test_numbers_of_an_episode(tmp_path):
    turns = [
        turn(LONG, "1", "</think>", [-0.25, float("nan")]),
        turn(SHORT, "2", "</rethink>", [-1.0]),
        turn(LONG, "3", "</think>", [-0.00004, -0.5]),
    ]
    gaps = {"long": [0.5, -0.0126, 0.001, 0.25], "short": [0.1]}
    rows = [trained(7, turns, gaps=gaps, reward={"long": 1.0, "short": 2.0}, terms={"length": float("inf")})]
    write_step(tmp_path, 7, rows)
    viewer, (item,), _ = collected(tmp_path)
    entry = viewer.index[0]
    assert (entry["verdict"], entry["turns"], entry["tokens"], entry["reward"]) == ("not graded", 3, 6, 1.5)
    assert item["advantage"] == {"long": 0.25, "short": -0.25}
    assert item["terms"] == {"length": None}
    assert [numbers for _, *numbers in item["tokens"]] == [
        [[-0.25, None], [0.5, -0.0126]],
        [[], []],  # two tokens, but one log-prob and one gap
        [[-0.0, -0.5], [0.001, 0.25]],
    ]


def test_tokens_of_the_oldest_steps_give_way(tmp_path):
    for step in (1, 2):
        write_step(tmp_path, step, [trained(step, TINY)] * 10)
    whole, _, _ = collected(tmp_path)
    room = sum(map(len, whole.items[:15])) / 1e6
    less, items, _ = collected(tmp_path, size_mb=room)
    assert less.without_tokens in (5, 6)
    assert ["tokens" in item for item in items] == [True] * (20 - less.without_tokens) + [False] * less.without_tokens


def test_tokens_have_the_texts_of_the_runs_tokenizer(tmp_path):
    save_tokenizers(tmp_path)
    write_step(tmp_path, 1, [trained(1, [turn(LONG, "é1\n", "</think>"), turn(SHORT, "2", "</answer>")])])
    _, (item,), remarks = collected(tmp_path)
    assert [texts for texts, *_ in item["tokens"]] == [["�", "�", "1", "\n", "</think>"], ["2", "</answer>"]]
    assert remarks == []


def test_a_foreign_or_damaged_tokenizer_shows_ids(tmp_path):
    save_tokenizers(tmp_path)
    foreign = turn(LONG, "1+1", "") | {"token_ids": [250, 251, 252]}
    swapped = turn(SHORT, "1+1", "") | {"role": LONG}  # one model plays both roles
    write_step(tmp_path, 1, [trained(1, [foreign]), trained(1, [swapped])])
    _, (first, second), remarks = collected(tmp_path)
    assert first["tokens"][0][0] == ["⟨250⟩", "⟨251⟩", "⟨252⟩"]
    assert second["tokens"][0][0] == ["1", "+", "1"]
    assert remarks == ["1 turns show token ids, as no tokenizer of their run fits them."]
    for role in ROLES:
        (tmp_path / f"checkpoint-2/{role}/tokenizer.json").write_text("{")
    assert collected(tmp_path)[2] == ["2 turns show token ids, as no tokenizer of their run fits them."]


@pytest.mark.parametrize("most", [0, 1])
def test_no_more_than_asked_for(tmp_path, most):
    write_step(tmp_path, 1, [trained(1, TINY)] * 3)
    viewer, items, _ = collected(tmp_path, most)
    assert len(viewer.index) == len(items) == most
    assert viewer.total == 3
