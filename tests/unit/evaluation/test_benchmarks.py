r"""Benchmarks: found by name, read in every published shape, and every reference answer counted."""

import json
import re
from collections import Counter

import pytest

from longshort.evaluation.benchmarks import GoldCheck, check_golds, gpqa, load_benchmark
from longshort.grading.answers import decide
from longshort.grading.pool import GradingPool, Verdict
from longshort.types import LongShortError, Problem

OFFICIAL = {
    "Record ID": "rec1",
    "Question": "What boils at 100 degrees?\n",
    "Correct Answer": "Water, at sea level\n",
    "Incorrect Answer 1": "Iron",
    "Incorrect Answer 2": "Salt (dry)",
    "Incorrect Answer 3": "Sand, or gravel ",
}
CANDIDATES = {
    "problem": "Of (1) tea, or (2) wine, which keeps?\n\n\n Candidate answer: "
    "(1) (a, b), or neither  , or (2) (b, a)\n, or (3) 5.0, or (4) Wine (2) ",
    "answer": "(a, b), or neither  \n",
}
TEA, WATER = (
    ["(a, b), or neither", "(b, a)", "5.0", "Wine (2)"],
    ["Water, at sea level", "Iron", "Salt (dry)", "Sand, or gravel"],
)


@pytest.fixture
def folder(tmp_path):
    """Write rows to a file of the data folder and return the folder."""

    def write(name, *rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path

    return write


def parts(problem):
    """(stem, {letter: option}, instruction) of a question with options, read as a person would."""
    stem, listed, instruction = problem.question.split("\n\n")
    return stem, dict(line.split(") ", 1) for line in listed.split("\n")), instruction


def refusal(name, **where):
    with pytest.raises(LongShortError) as caught:
        load_benchmark(name, **where)
    return str(caught.value)


def test_a_known_name_is_read_from_the_data_folder(folder):
    rows = [{"problem": "1+1?", "answer": "2"}, {"problem": "1+2?", "answer": "3"}]
    data = folder("amc23.jsonl", *rows)
    loaded = load_benchmark("amc23", data_dir=str(data))
    assert (loaded.name, loaded.title, loaded.source) == ("amc23", "AMC 2023", str(data / "amc23.jsonl"))
    assert [(problem.question, problem.answer) for problem in loaded.problems] == [("1+1?", "2"), ("1+2?", "3")]
    assert loaded.remark == f"{data / 'amc23.jsonl'} holds 2 problems; AMC 2023 is published with 40"
    first = load_benchmark("amc23", data_dir=data, limit=1)
    assert (first.problems, first.remark) == (loaded.problems[:1], "")


def test_every_kind_of_file_is_found_and_the_plain_name_goes_first(folder, tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"question": "How many?", "answer": "So 5.\n#### 1,080"}
    folder("gsm8k_test.json")
    (tmp_path / "gsm8k_test.json").write_text(json.dumps([row]))
    assert load_benchmark("gsm8k", data_dir=tmp_path).source.endswith("gsm8k_test.json")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row | {"question": "How few?"}]), tmp_path / "gsm8k.parquet")
    (problem,) = load_benchmark("gsm8k", data_dir=tmp_path).problems
    assert (problem.question, problem.answer) == ("How few?", "1080")


def test_any_source_of_problems_is_a_benchmark(folder):
    path = str(folder("mine.jsonl", {"id": 7, "problem": "1+1?", "answer": "2"}) / "mine.jsonl")
    loaded = load_benchmark(path)
    assert (loaded.name, loaded.title, loaded.source, loaded.remark) == (path, path, path, "")
    assert loaded.problems == (Problem(id="7", question="1+1?", answer="2"),)


def test_the_miniature_has_as_many_problems_as_it_is_asked_for():
    loaded = load_benchmark("miniature")
    assert (loaded.source, len(loaded.problems), loaded.remark) == ("miniature:test", 400, "")
    assert (
        load_benchmark("miniature:test", limit=3).problems
        == load_benchmark("miniature", limit=3).problems
        == loaded.problems[:3]
    )


def test_a_name_that_is_nothing_is_met_with_the_nearest_one(tmp_path):
    known = "known: math500, aime24, aime25, amc23, gpqa_diamond, gsm8k, miniature"
    assert refusal("maths500") == f"benchmark: 'maths500' is not known; did you mean 'math500'? {known}"
    assert refusal("wikipedia") == f"benchmark: 'wikipedia' is not known; {known}"
    assert "there is no such file" in refusal("none.jsonl")
    assert f"eval.data_dir '{tmp_path}/none' is no folder" in refusal("math500", data_dir=tmp_path / "none")


def test_where_neither_folder_nor_hub_has_it_both_are_named(tmp_path):
    message = refusal("math500", data_dir=tmp_path)
    assert message.startswith(
        f"benchmark 'math500': the folder {tmp_path} holds no math500.* or math500_test.* "
        "(.jsonl, .json, .parquet), and"
    )
    assert "dataset 'HuggingFaceH4/MATH-500:test' (config default, split 'test') could not be loaded" in message
    assert "gated" not in message
    closed = refusal("gpqa_diamond")
    assert closed.startswith("benchmark 'gpqa_diamond': eval.data_dir names no folder with gpqa_diamond.*")
    assert (
        "dataset 'Idavidrein/gpqa:gpqa_diamond:train'" in closed
        and "it is gated: accept its terms on its hub page" in closed
    )


@pytest.mark.parametrize(
    ("row", "stem", "options"),
    [(OFFICIAL, "What boils at 100 degrees?", WATER), (CANDIDATES, "Of (1) tea, or (2) wine, which keeps?", TEA)],
)
def test_both_shapes_of_gpqa_become_options_and_a_letter(row, stem, options):
    for seed in range(8):
        problem = gpqa(row, "here", seed)
        asked, shown, instruction = parts(problem)
        assert (asked, instruction) == (stem, r"Answer with the letter of the right option in \boxed{}.")
        assert list(shown) == ["A", "B", "C", "D"]
        assert sorted(shown.values()) == sorted(options)
        assert shown[problem.answer] == options[0]


def test_a_question_may_speak_of_candidate_answers_itself():
    form = "A form says: 'Candidate answer: (1) yes, or (2) no.' Why?"
    stem, options, _ = parts(
        gpqa(
            {"problem": f"{form} Candidate answer: (1) law, or (2) whim, or (3) yes, or (4) no", "answer": "law"},
            "here",
            0,
        )
    )
    assert (stem, sorted(options.values())) == (form, ["law", "no", "whim", "yes"])


def test_the_options_lie_the_same_on_every_machine_and_elsewhere_for_every_seed():
    lines = [
        "What boils at 100 degrees?",
        "",
        "A) Iron",
        "B) Salt (dry)",
        "C) Sand, or gravel",
        "D) Water, at sea level",
        "",
    ]
    question = "\n".join([*lines, r"Answer with the letter of the right option in \boxed{}."])
    assert gpqa(OFFICIAL, "here", 0) == Problem(id="rec1", question=question, answer="D")
    problems = [gpqa(CANDIDATES, "here", seed) for seed in range(20)]
    assert {problem.id for problem in problems} == {"1098d1444422"}
    assert "".join(problem.answer for problem in problems) == "AAAACADBBDCBDBACDBBC"


def test_the_right_letter_is_uniform_over_the_rows(folder):
    text = "Question {0}?\n\n Candidate answer: (1) right {0}, or (2) x, or (3) y, or (4) z"
    rows = [{"problem": text.format(i), "answer": f"right {i}"} for i in range(4000)]
    counts = Counter(
        problem.answer
        for problem in load_benchmark("gpqa_diamond", data_dir=folder("gpqa_diamond.jsonl", *rows)).problems
    )
    assert set(counts) == set("ABCD")
    assert all(abs(count - 1000) < 110 for count in counts.values())  # four standard deviations of 27.4


def test_gpqa_is_read_through_the_loader_with_its_seed_and_limit(folder):
    data = folder("gpqa_diamond.jsonl", *({**OFFICIAL, "Record ID": f"rec{i}"} for i in range(5)))
    loaded = load_benchmark("gpqa_diamond", data_dir=data, seed=3)
    assert [problem.id for problem in loaded.problems] == ["rec0", "rec1", "rec2", "rec3", "rec4"]
    assert loaded.problems[1] == gpqa(OFFICIAL, "here", 3)
    assert loaded.remark.endswith("holds 5 problems; GPQA Diamond is published with 198")
    assert load_benchmark("gpqa_diamond", data_dir=data, seed=3, limit=2).problems == loaded.problems[:2]
    assert load_benchmark("gpqa_diamond", data_dir=data, seed=4).problems != loaded.problems
    message = refusal("gpqa_diamond", data_dir=folder("gpqa_diamond.jsonl", OFFICIAL, OFFICIAL))
    assert "line 2: the id 'rec1' is already used at" in message


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            CANDIDATES | {"answer": "(a, b)"},
            "here: the answer '(a, b)' is none of the options ['(a, b), or neither', '(b, a)', '5.0', 'Wine (2)']",
        ),
        (
            {"problem": "Which?\n\n Candidate answer: (1) a, or (2) b, or (3) c", "answer": "a"},
            "here: no row of GPQA, which has the columns",
        ),
        (
            {"problem": "Which? Candidate answer: (1) a, or (2) , or (3) c, or (4) d", "answer": "a"},
            "here: an option is empty",
        ),
        ({"problem": "Which?", "answer": "A"}, "name a file of another shape by its path"),
        ({"problem": "Which?"}, "here: no answer; expected a column answer"),
        (OFFICIAL | {"Question": " "}, "here: the column 'Question' must hold text, got ' '"),
        (OFFICIAL | {"Incorrect Answer 2": None}, "here: the column 'Incorrect Answer 2' must hold text, got None"),
        (OFFICIAL | {"Incorrect Answer 3": "a \ud83d"}, "here: half a character"),
    ],
)
def test_a_row_that_is_no_row_of_gpqa_is_refused(row, says):
    with pytest.raises(LongShortError, match="^" + re.escape("here: ")) as caught:
        gpqa(row, "here", 0)
    assert says in str(caught.value)


def test_a_letter_is_graded_in_every_usual_wrapping_and_no_other_letter_passes():
    spellings = [
        "{}",
        r"\text{{{}}}",
        "({})",
        "{}.",
        r"\textbf{{{}}}",
        r"\mathrm{{{}}}",
        r"\text{{({})}}",
        r"\mathbf{{({})}}",
        "${}$",
    ]
    with GradingPool() as pool:
        for gold in "ABCD":
            for letter in "ABCDabcd":
                verdicts = pool.grade_all((gold, rf"\boxed{{{spelling.format(letter)}}}") for spelling in spellings)
                assert [verdict.correct for verdict in verdicts] == [letter.upper() == gold] * len(spellings), (
                    gold,
                    letter,
                )


def test_golds_are_counted_and_the_bad_ones_named():
    golds = {
        "half": r"\frac{1}{2}",
        "letter": "C",
        "cut": r"\frac{1}{",
        "brace": "5}",
        "tower": "9^{9^{9^9}}",
        "long": "7" * 501,
    }
    problems = [Problem(id=id, question="?", answer=gold) for id, gold in golds.items()]
    with GradingPool() as pool:
        faults = {"cut": "unparsable", "brace": "unparsable", "tower": "too_costly", "long": "too_long"}
        assert check_golds(problems, pool) == GoldCheck(problems=6, parsed=2, verified=3, faults=faults)
        assert check_golds(problems[:2], pool) == GoldCheck(problems=2, parsed=2, verified=2, faults={})


def test_a_gold_that_parses_and_yet_is_not_verified_is_a_fault():
    class Pool:
        def gold_faults(self, problems):
            return {"cut": "unparsable"}

        def grade_all(self, pairs):
            asked = list(pairs)
            assert asked == [("cut", r"\boxed{cut}"), ("odd", r"\boxed{odd}"), ("fine", r"\boxed{fine}")]
            return [
                Verdict(correct=gold != "odd", reason="match" if gold != "odd" else "mismatch") for gold, _ in asked
            ]

    problems = [Problem(id=f"row-{gold}", question="?", answer=gold) for gold in ("cut", "odd", "fine")]
    faults = {"row-cut": "unparsable", "row-odd": "mismatch"}
    assert check_golds(problems, Pool()) == GoldCheck(problems=3, parsed=2, verified=2, faults=faults)


RIGHT = (
    r"C|c|(C)|C.|[C]|\text{C}|\textbf{(C)}|C)|C) 3.2 eV|(C) 7|Option C|\text{Answer: C}|\mathbb{C}"
    r"|\text{\textbf{C}}|The answer is C"
)
WRONG = r"B|A, C|C or D|A=C|CC|A) C|not C|ABCD|(A) or (C)|3|Cat|C_1|C+1"


@pytest.mark.parametrize("gold", ["C", r"\text{(C)}"])
def test_the_letter_of_an_option_counts_however_it_is_written(gold):
    assert [text for text in RIGHT.split("|") if decide(gold, text) != "match"] == []
    assert [text for text in WRONG.split("|") if decide(gold, text) != "mismatch"] == []
