"""The report's viewer of episodes: what it finds, which it chooses, how it packs them, and a browser that looks at them."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from longshort.dialogue.encoding import encode_plain
from longshort.miniature.tokenizer import build_tokenizer
from longshort.report.viewer import viewer_parts
from longshort.report.viewer_data import choose, expand, pack, spread, squeeze
from longshort.report.viewer_files import evaluation_source, find, read_line
from longshort.report.viewer_vocabulary import candidates, recognises, table
from longshort.types import LONG, ROLES, SHORT

HOSTILE = (
    "Wait </script><script>window.hacked=1</script> <img src=x onerror=window.hacked=1> </answer> <think> \u2028 \ud800 \0 "
    "\u202eesrever\u202c &amp; <!-- " + "x" * 20_000
)
SHOWN_HOSTILE = HOSTILE.replace("\ud800", "\ufffd")


@dataclass(frozen=True)
class Run:
    name: str
    folder: Path


@pytest.fixture(scope="module", name="tokenizers")
def made_tokenizers():
    return {role: build_tokenizer(role) for role in ROLES}


def row(problem, said, stop="answered", question="1+1?", **more):
    """A line in the format of longshort/runs/episodes.py; `said` is [(role, text, closing tag, token ids, log-probs)]."""
    turns = [
        {
            "role": role,
            "text": text,
            "stop": tag,
            "version": 3,
            "context_ids": [7, 8],
            "token_ids": ids,
            "logprobs": logprobs,
        }
        for role, text, tag, ids, logprobs in said
    ]
    return {"problem": {"id": problem, "question": question, "answer": "2"}, "stop": stop, "turns": turns} | more


def tiny(problem, step=None, **more):
    """An episode of one turn and one token."""
    return row(problem, [(LONG, "a", "</think>", [5], [-0.5])], **({"step": step} if step else {}), **more)


def write(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def write_steps(folder: Path, steps, problems, samples=2) -> Run:
    for step in steps:
        write(folder / f"episodes/step-{step:06d}.jsonl", [tiny(p, step) for p in problems for _ in range(samples)])
    return Run(folder.name, folder)


def test_a_file_name_tells_its_evaluation(tmp_path):
    source = evaluation_source(0, Path("eval/training/step-40.miniature:test.v1.sampled.jsonl"))
    assert (source.evaluation, source.system, source.benchmark, source.decoding) == (
        "training",
        "step-40",
        "miniature:test.v1",
        "sampled",
    )
    assert source.step == 40 and evaluation_source(0, Path("eval/final/pair.math.greedy.jsonl")).step is None
    for step in (20, 100):
        write(tmp_path / f"eval/training/step-{step}.math.greedy.jsonl", [tiny("p")])
    assert [source.system for source in find([Run("r", tmp_path)]).sources] == ["step-20", "step-100"]


def test_damaged_and_foreign_lines_are_told_and_the_rest_is_found(tmp_path):
    path = write(tmp_path / "episodes/step-000001.jsonl", [tiny("a", 1), {"loss": 0.5}, tiny("b", 1), tiny("a", 1)])
    path.write_bytes(path.read_bytes() + b"[" * 100_000 + b"\n\n" + b'{"problem": {"id": "c"')
    found = find([Run("r", tmp_path)])
    assert [(place.problem, place.ordinal) for place in found.places] == [("a", 0), ("b", 0), ("a", 1)]
    (remark,) = found.remarks
    assert remark.startswith(
        "r/episodes/step-000001.jsonl, line 2: no episode (problem: Field required), and so are 2 more of its lines;"
    )
    assert find([Run("r", tmp_path / "nowhere")]).places == []


def test_lines_without_context_and_with_broken_text_are_read():
    old = tiny("a", 1)
    del old["turns"][0]["context_ids"]
    assert read_line(json.dumps(old).encode()).turns[0].context_ids is None
    assert read_line(json.dumps(tiny("a", question=HOSTILE)).encode()).problem.question == SHOWN_HOSTILE


def chosen(run, limit):
    found = find([run])
    return Counter((found.sources[place.source].system, place.step, place.problem) for place in choose(found, limit))


def test_choosing_keeps_groups_whole_and_steps_even(tmp_path):
    run = write_steps(tmp_path / "r", range(1, 9), ["p", "q", "r"])
    assert choose(find([run]), 99) == sorted(find([run]).places, key=lambda place: -place.step)
    assert chosen(run, 16) == {("", step, "p"): 2 for step in range(1, 9)}
    assert chosen(run, 5) == {("", step, "p"): 2 for step in (8, 4)}
    assert chosen(run, 1) == {("", 8, "p"): 1} and chosen(run, 0) == {}
    assert spread(8) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_choosing_prefers_problems_that_can_be_compared(tmp_path):
    write(tmp_path / "episodes/step-000001.jsonl", [tiny(p, 1) for p in "abz"])
    write(tmp_path / "episodes/step-000002.jsonl", [tiny(p, 2) for p in "cdz"])
    assert chosen(Run("r", tmp_path), 2) == {("", 1, "z"): 1, ("", 2, "z"): 1}


def test_evaluations_come_first_but_leave_half_to_training(tmp_path):
    run = write_steps(tmp_path, [1, 2], [f"t{i}" for i in range(5)], samples=1)
    for system in ("pair", "alone"):
        write(tmp_path / f"eval/final/{system}.math.greedy.jsonl", [tiny(f"e{i}") for i in range(10)])
    kept = chosen(run, 8)
    assert [sum(n for (system, *_), n in kept.items() if system == one) for one in ("pair", "alone", "")] == [2, 2, 4]
    assert {problem for system, _, problem in kept if system == "pair"} == {
        problem for system, _, problem in kept if system == "alone"
    }
    assert sum(n for (system, *_), n in chosen(run, 25).items() if system) == 15  # of 20; training needs only 10
    found = find([run])
    assert [found.sources[place.source].kind for place in choose(found, 8)] == ["evaluation"] * 4 + ["training"] * 4


def test_packing_by_hand(tmp_path):
    said = [
        (LONG, "a", "</think>", [5, 6], [-0.25, float("nan")]),
        (SHORT, "b", "</rethink>", [9], [-1.0]),
        (LONG, "c", "</think>", [4], [-0.0004]),
        (SHORT, "d", "</answer>", [1, 2], [-2.0]),
    ]
    extra = {"step": 7, "reward": {"long": 1.0, "short": 2.0}, "terms": {"correct": 1.0, "length": float("inf")}}
    gaps = {"gaps": {"long": [0.5, -0.0126, 0.001], "short": [0.1]}}
    write(
        tmp_path / "episodes/step-000007.jsonl",
        [row("p", said, **extra, **gaps), tiny("p", 7, correct=False, reason="timeout")],
    )
    found = find([Run("r", tmp_path)])
    packed = pack(choose(found, 9), 40, remarks := [])
    assert packed.rows == [[0, 7, 0, 0, 0, 1, 4, 6, 1.5], [0, 7, 0, 1, 0, 0, 1, 1, None]]
    assert packed.problems == [("p", "1+1?")] and packed.stops == ["answered"]
    (first, second), (tokens, _) = expand(packed.texts[0]), expand(packed.tokens[0])
    assert first["turns"][1] == [SHORT, "b", "</rethink>", 3, 1] and first["terms"] == {"correct": 1.0, "length": None}
    assert second["reason"] == "timeout" and "terms" not in second
    assert tokens == [
        [[7, 8], [5, 6], [-250, None], [500, -13]],
        [[7, 8], [9], [-1000], None],
        [[7, 8], [4], [0], [1]],
        [[7, 8], [1, 2], None, None],
    ]
    assert remarks == [
        "Turns shown without gaps, as their role has not one for each token that it sampled: 2.",
        "Turns shown without log-probs, as they have not one for each token: 1.",
    ]
    assert packed.ids == {(0, LONG): {4, 5, 6, 7, 8}, (0, SHORT): {1, 2, 7, 8, 9}}
    assert squeeze({"é": "\u2028"}) == squeeze({"é": "\u2028"}) and expand(squeeze({"é": "\u2028"})) == {"é": "\u2028"}


def test_tokens_of_the_oldest_steps_give_way(tmp_path):
    run = write_steps(tmp_path / "r", range(1, 5), ["p"], samples=64)
    whole = viewer_parts([run])
    sizes = [len(block) for block in re.findall(r"base64\" id=\"episode-(?:texts|tokens)-\d\">([^<]*)<", whole.html)]
    assert len(sizes) == 8 and "left out" not in whole.html
    room = (sum(sizes) - sizes[-1] / 2) / 1e6
    less = viewer_parts([run], size_mb=room)
    assert less.html.count('id="episode-tokens-') == 3 and less.html.count('id="episode-texts-') == 4
    assert "The tokens of 64 episodes, training steps 1 to 1, are left out" in less.html
    none = viewer_parts([run], size_mb=0)
    assert 'id="episode-tokens-' not in none.html and "training steps 1 to 4" in none.html


def test_token_texts_are_visible_bytes_and_controls(tokenizers):
    ids = encode_plain(tokenizers[LONG], "é1\n\n")
    closing = tokenizers[LONG].convert_tokens_to_ids("</think>")
    made = table(tokenizers[LONG], {*ids, closing, 10**9})
    texts = dict(zip(made["ids"], made["texts"], strict=True))
    assert [texts[i] for i in ids] == ["\\xc3", "\\xa9", "1", "\n\n"]
    assert texts[closing] == "</think>" and made["special"] == [closing] and 10**9 not in texts
    turn = [([*encode_plain(tokenizers[LONG], "a: 1+1"), closing], "a: 1+1")]
    assert recognises(tokenizers[LONG], turn) and not recognises(tokenizers[SHORT], turn)


def test_tokenizers_come_from_the_run_and_must_fit(tmp_path, tokenizers):
    for role in ROLES:
        tokenizers[role].save_pretrained(tmp_path / "checkpoint-2" / role)
    ids = {role: list(encode_plain(tokenizers[role], "1+1")) for role in ROLES}
    write(
        tmp_path / "episodes/step-000001.jsonl",
        [row("p", [(role, "1+1", "", ids[role], [0, 0, 0]) for role in ROLES], step=1)],
    )
    foreign = row("p", [(LONG, "1+1", "", [250, 251, 252], [0, 0, 0])])
    write(tmp_path / "eval/final/other.math.greedy.jsonl", [foreign])
    write(tmp_path / "eval/final/swapped.math.greedy.jsonl", [row("p", [(LONG, "1+1", "", ids[SHORT], [0, 0, 0])])])
    parts = viewer_parts([Run("r", tmp_path)])
    training, other, swapped = (source["vocabularies"] for source in index_of(parts)["sources"])
    assert sorted(training) == ["long", "short"] and other == {} and swapped == {"long": training["short"]}
    assert parts.remarks[0].startswith("r: no tokenizer here fits the tokens of long in other (looked in")
    tokenizers[LONG].save_pretrained(tmp_path / "elsewhere")
    results = {"systems": {"other": {"models": {"long": str(tmp_path / "elsewhere")}}}}
    (tmp_path / "eval/final.json").write_text(json.dumps(results))
    first = next(candidates(tmp_path, evaluation_source(0, tmp_path / "eval/final/other.math.greedy.jsonl"), LONG))
    assert first == tmp_path / "elsewhere"
    (tmp_path / "checkpoint-2/long/tokenizer.json").write_text("{")
    broken = viewer_parts([Run("r", tmp_path)])
    assert any(remark.startswith("The tokenizer in checkpoint-2/long does not load") for remark in broken.remarks)


def index_of(parts):
    return json.loads(re.search('id="episode-index">(.*?)</script>', parts.html).group(1))


def test_a_run_without_episodes_says_so(tmp_path):
    parts = viewer_parts([Run("r", tmp_path)])
    assert "No episodes here" in parts.html and parts.script == "" and parts.remarks == []
    assert "there are 2" in viewer_parts([write_steps(tmp_path, [1], ["p"])], episodes=0).html


def test_the_html_is_inert_and_the_same_again(tmp_path):
    write(tmp_path / "episodes/step-000001.jsonl", [tiny(HOSTILE, 1, question=HOSTILE) for _ in range(3)])
    first, again = (viewer_parts([Run(HOSTILE, tmp_path)], episodes=2) for _ in range(2))
    assert first == again and "<script>window" not in first.html and "\u2028" not in first.html
    assert "2 of 3 episodes shown; --episodes raises it." in first.html
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|https?:", first.script + first.style
    )
