"""Loading problems: every known shape of row, and a clear word about every broken one."""

import json
from decimal import Decimal
from fractions import Fraction

import numpy
import pytest

from longshort.data import load_problems, normalise, problems_of
from longshort.types import LongShortError, Problem


@pytest.fixture
def jsonl(tmp_path):
    """Write rows (dicts, or raw lines as text or bytes) to a file and return its path."""

    def write(*rows, name="rows.jsonl", newline=b"\n"):
        lines = [
            row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
            for row in rows
        ]
        path = tmp_path / name
        path.write_bytes(newline.join(lines) + newline)
        return str(path)

    return write


def only(source):
    (problem,) = load_problems(source)
    return problem.question, problem.answer


def refusal(source):
    with pytest.raises(LongShortError) as caught:
        load_problems(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"problem": "1+1?", "answer": "2"}, ("1+1?", "2")),
        ({"question": "How many?", "answer": "It is 48/2 = <<48/2=24>>24.\n#### 1,080"}, ("How many?", "1080")),
        ({"question": "Points?", "answer": "#### (1,234)"}, ("Points?", "(1,234)")),
        ({"prompt": "1+1?", "solution": "$2$"}, ("1+1?", "$2$")),
        ({"prompt": "1+1?", "solution": "So \\boxed{1} or \\boxed{\\frac{4}{2}}."}, ("1+1?", "\\frac{4}{2}")),
        (
            {"prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}], "solution": "2"},
            ("1+1?", "2"),
        ),
        (
            {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"style": "rule", "ground_truth": "2"}},
            ("1+1?", "2"),
        ),
        ({"problem": "1+1?", "solution": "Clearly \\boxed{2}."}, ("1+1?", "2")),
        ({"problem": "1+1?", "solution": "\\boxed{3}", "answer": "2"}, ("1+1?", "2")),
        ({"problem": " 1+1?\n", "answer": " 2 "}, ("1+1?", "2")),
        ({"problem": "?", "answer": 5.0}, ("?", "5")),
        ({"problem": "?", "answer": "-5.00"}, ("?", "-5")),
        ({"problem": "?", "answer": 5}, ("?", "5")),
        ({"problem": "?", "answer": 2.5}, ("?", "2.5")),
        ({"problem": "?", "answer": "11.\\! 0"}, ("?", "11.\\! 0")),
        ({"problem": "?", "answer": ["7"]}, ("?", "7")),
        (
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "1+"}, {"type": "text", "text": "1?"}]}]}
            | {"answer": "2"},
            ("1+1?", "2"),
        ),
    ],
)
def test_a_row_of_any_known_shape_is_a_problem(jsonl, row, expected):
    assert only(jsonl(row)) == expected


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (numpy.int64(5), "5"),
        (numpy.uint8(5), "5"),
        (numpy.float32(0.1), "0.1"),
        (numpy.float16(5), "5"),
        (numpy.float64(2.5), "2.5"),
        (numpy.str_("x+1"), "x+1"),
        (numpy.array(7), "7"),
        (numpy.array(["7"], dtype=object), "7"),
        (Decimal("5.00"), "5"),
        (Decimal("0E-10"), "0"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E+1000000"), "1E+1000000"),
        (Fraction(1, 3), "1/3"),
        (10**400, "1" + "0" * 400),
    ],
)
def test_a_number_of_any_type_is_an_answer(value, answer):
    assert normalise({"problem": "?", "answer": value}, "row").answer == answer


def test_a_chat_prompt_of_a_pandas_table_is_an_array_of_messages():
    prompt = numpy.array([{"role": "user", "content": "1+1?"}], dtype=object)
    assert normalise({"prompt": prompt, "answer": "2"}, "row").question == "1+1?"


@pytest.mark.parametrize(
    ("value", "kind", "answer"),
    [(Decimal("2.50"), "decimal128(10, 2)", "2.50"), (0.1, "float32()", "0.1"), (5, "float32()", "5")],
)
def test_numbers_of_a_parquet_file_are_what_was_written(tmp_path, value, kind, answer):
    import pyarrow
    import pyarrow.parquet

    types = {"decimal128(10, 2)": pyarrow.decimal128(10, 2), "float32()": pyarrow.float32()}
    table = pyarrow.table({"problem": ["?"], "answer": pyarrow.array([value], types[kind])})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert only(str(tmp_path / "rows.parquet")) == ("?", answer)


def test_a_tuple_holds_what_a_list_does():
    row = {"prompt": ({"role": "user", "content": "1+1?"},), "answer": ("2",)}
    assert normalise(row, "row").question == "1+1?"
    assert normalise(row, "row").answer == "2"


@pytest.mark.parametrize("role", ["tool", "USER", "human", None])
def test_a_message_of_an_unknown_role_is_refused_and_not_left_out(role):
    prompt = [{"role": "user", "content": "1+1?"}, {"role": role, "content": "in base 2"}]
    with pytest.raises(LongShortError, match=rf"holds a message of {role!r}; a problem has user, system"):
        normalise({"prompt": prompt, "answer": "10"}, "row")


def test_a_tensor_that_numpy_cannot_read_is_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(LongShortError, match=r"^row: a Tensor that numpy cannot read"):
        normalise({"problem": "?", "answer": torch.tensor(1.5, dtype=torch.bfloat16)}, "row")


def test_an_id_that_a_table_left_empty_is_none():
    rows = [{"id": float("nan"), "problem": question, "answer": "5"} for question in ("a", "b")]
    assert len({problem.id for problem in problems_of(rows, "rows")} - {"nan"}) == 2


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (Problem(id="1", question="", answer="5"), "the question in column 'question' is empty"),
        (Problem(id="1", question="?", answer=[1, 2]), "the answer must be text or a number"),  # pyright: ignore
    ],
)
def test_a_problem_in_memory_is_checked_as_a_row_is(problem, says):
    with pytest.raises(LongShortError, match=rf"^rows\[0\]: {says}"):
        problems_of([problem], "rows")
    assert problems_of([Problem(id="1", question="?", answer="5")], "rows")[0].id == "1"


def test_columns_instead_of_rows_are_refused():
    with pytest.raises(LongShortError, match=r"a dict of problem, answer; pass the rows: .*from_dict"):
        problems_of({"problem": ["?"], "answer": ["5"]}, "train_dataset")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"answer": numpy.bool_(True)}, "the answer must be text or a number, got bool"),
        ({"answer": 1j}, "the answer must be text or a number, got complex 1j"),
        ({"answer": b"5"}, "the answer must be text or a number, got bytes b'5'"),
        ({"answer": numpy.array([1, 2])}, "the answer must be text or a number, got list [np.int64(1), np.int64(2)]"),
        ({"answer": numpy.float32("nan")}, "the answer is nan; correct it"),
        ({"answer": Decimal("sNaN")}, "the answer is sNaN; correct it"),
        ({"answer": Decimal("-Infinity")}, "the answer is -Infinity; correct it"),
        ({"answer": 10**5000}, "an integer of more than 4,300 digits; put it between quotes"),
        ({"answer": "1", "id": 10**5000}, "the id is an integer of more than 4,300 digits"),
        ({"answer": "1", "id": "a\ud83d"}, "half a character"),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(row, says):
    with pytest.raises(LongShortError) as caught:
        normalise({"problem": "?"} | row, "row 3")
    assert str(caught.value).startswith(f"row 3: {says}")


@pytest.mark.parametrize("row", ["train", None, 5, ["problem", "answer"]])
def test_a_row_that_is_no_mapping_is_refused(row):
    with pytest.raises(LongShortError, match=r"^rows\[0\]: a row is a mapping with a question and an answer, got"):
        problems_of([row], "rows")


def test_columns_without_names_are_listed_as_they_are():
    with pytest.raises(LongShortError, match=r"no question; expected .*, got 0, 1"):
        normalise({0: "a", 1: "b"}, "row 1")


def test_a_data_set_of_several_splits_asks_for_one():
    import datasets

    rows = datasets.Dataset.from_list([{"problem": "1+1?", "answer": 2}])
    splits = datasets.DatasetDict({"train": rows, "test": rows})
    with pytest.raises(LongShortError) as caught:
        problems_of(splits, "train_dataset")
    assert str(caught.value) == (
        "train_dataset is a DatasetDict of the splits train, test; which one? Pass it alone, "
        "e.g. train_dataset=data['train']"
    )
    assert [problem.answer for problem in problems_of(splits["train"], "train_dataset")] == ["2"]


@pytest.mark.parametrize("rows", ["data.jsonl", 5])
def test_what_holds_no_rows_is_named(rows):
    with pytest.raises(LongShortError, match=rf"^train_dataset is a {type(rows).__name__}; pass the rows"):
        problems_of(rows, "train_dataset")


def test_a_pandas_table_is_pointed_to_its_rows():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(LongShortError, match=r'is a DataFrame; .* table.to_dict\("records"\)'):
        problems_of(pandas.DataFrame([{"problem": "a", "answer": 1}]), "train_dataset")


def test_no_rows_at_all_are_refused():
    with pytest.raises(LongShortError, match="train_dataset is empty; pass at least one problem"):
        problems_of([], "train_dataset")


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "a", "problem": "1", "answer": "1"}, {"id": "a", "problem": "2", "answer": "2"}],
        [Problem(id="a", question="1", answer="1"), Problem(id="a", question="2", answer="2")],
    ],
)
def test_an_id_used_twice_is_refused_in_memory_as_in_a_file(rows):
    with pytest.raises(LongShortError) as caught:
        problems_of(rows, "train_dataset")
    assert str(caught.value) == (
        "train_dataset[1]: the id 'a' is already used at train_dataset[0]; give each problem its own"
    )


def test_a_copy_without_an_id_gets_one_in_memory_as_in_a_file():
    first, second = problems_of([{"problem": "a", "answer": "1"}] * 2, "train_dataset")
    assert second.id == f"{first.id}-2"


def test_windows_line_ends_blank_lines_and_a_byte_order_mark_are_fine(jsonl):
    first = b"\xef\xbb\xbf" + json.dumps({"problem": "a", "answer": "1"}).encode()
    path = jsonl(first, "", '{"problem": "b\u2028c", "answer": "2"}', newline=b"\r\n")
    assert [(p.question, p.answer) for p in load_problems(path)] == [("a", "1"), ("b\u2028c", "2")]


def test_json_and_parquet_hold_the_same_problems_as_jsonl(jsonl, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": [{"role": "user", "content": f"{i}+1?"}], "reward_model": {"ground_truth": str(i + 1)}}
        for i in range(3)
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    expected = load_problems(jsonl(*rows))
    assert [problem.answer for problem in expected] == ["1", "2", "3"]
    assert load_problems(str(tmp_path / "rows.json")) == expected
    assert load_problems(str(tmp_path / "rows.parquet")) == expected


def test_a_dataset_folder_is_read_by_split(jsonl, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    jsonl({"problem": "a", "answer": "1"}, name="set/train.jsonl")
    jsonl({"problem": "b", "answer": "2"}, name="set/test.jsonl")
    assert only(f"{tmp_path}/set") == ("a", "1")
    assert only(f"{tmp_path}/set:test") == ("b", "2")
    assert "split 'dev'" in refusal(f"{tmp_path}/set:dev")


def test_ids_are_the_rows_own_or_stable(jsonl):
    given = load_problems(
        jsonl({"id": 7, "problem": "a", "answer": "1"}, {"unique_id": "test/3.json", "problem": "b", "answer": "2"})
    )
    assert [problem.id for problem in given] == ["7", "test/3.json"]
    assert load_problems(jsonl({"Record ID": "rec9", "problem": "a", "answer": "1"}))[0].id == "rec9"
    first = load_problems(jsonl({"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}))
    second = load_problems(
        jsonl({"question": "b", "answer": 2.0}, {"question": "b", "answer": "2"}, name="other.jsonl")
    )
    assert second[0] == first[1]
    assert second[1] == Problem(id=f"{first[1].id}-2", question="b", answer="2")


def test_the_miniature_is_a_source_whose_splits_share_nothing():
    train, test = load_problems("miniature:train", limit=200), load_problems("miniature:test", limit=200)
    assert len(train) == len(test) == 200
    assert not {problem.question for problem in train} & {problem.question for problem in test}
    assert load_problems("miniature:test", limit=5) == test[:5]


def test_normalise_takes_a_row_from_anywhere():
    assert normalise({"prompt": "1+1?", "solution": "2", "id": 3}, "train_dataset[0]") == Problem(
        id="3", question="1+1?", answer="2"
    )
    with pytest.raises(LongShortError, match=r"^train_dataset.4.: no answer"):
        normalise({"problem": "1+1?"}, "train_dataset[4]")


def test_a_row_reader_of_ones_own_sees_every_row_and_its_place(jsonl):
    def backwards(row, where):
        return Problem(id=where.rpartition(", ")[2], question=row["asked"][::-1], answer=row["said"])

    path = jsonl({"asked": "?1+1", "said": "2"}, {"asked": "?1+2", "said": "3"}, {"asked": "?1+3", "said": "4"})
    expected = [Problem(id="line 1", question="1+1?", answer="2"), Problem(id="line 2", question="2+1?", answer="3")]
    assert load_problems(path, limit=2, to_problem=backwards) == expected


def test_limit_keeps_the_first_rows_and_reads_no_further(jsonl):
    path = jsonl({"problem": "a", "answer": "1"}, {"problem": "b", "answer": "2"}, "broken")
    assert [problem.question for problem in load_problems(path, limit=2)] == ["a", "b"]


GOOD = {"problem": "a", "answer": "1"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"problem": "b", ', "line 2: not valid JSON"),
        ("[1, 2]", "line 2: expected an object with a question and an answer, got list"),
        ('{"problem": "b\u00e9"}'.encode("latin-1"), "line 2: byte 0xe9 at offset 14 is not UTF-8; convert the file"),
        (
            {"text": "b", "answer": "1"},
            "line 2: no question; expected a column problem, question, prompt, got text, answer",
        ),
        (
            {"problem": "b"},
            "line 2: no answer; expected a column answer, solution or reward_model.ground_truth, got problem",
        ),
        ({"problem": "b", "answer": None}, "line 2: no answer"),
        ({"problem": "b", "answer": "  "}, "line 2: the answer is empty"),
        ({"problem": "b", "answer": "steps\n####"}, "line 2: the answer is empty"),
        ({"problem": "b", "answer": float("nan")}, "line 2: the answer is nan; correct it or delete the row"),
        ({"problem": "b", "answer": float("inf")}, "line 2: the answer is inf"),
        ({"problem": "b", "answer": "NaN"}, "line 2: the answer is 'NaN'"),
        ({"problem": "b", "answer": True}, "line 2: the answer must be text or a number, got bool True"),
        ({"problem": "b", "answer": ["1", "2"]}, "line 2: the answer must be text or a number, got list ['1', '2']"),
        ({"problem": "b", "solution": "no box"}, "line 2: no answer: the row has a solution without \\boxed{}"),
        ({"problem": " \n", "answer": "1"}, "line 2: the question in column 'problem' is empty"),
        ({"prompt": [], "answer": "1"}, "line 2: the question in column 'prompt' is empty"),
        (
            {"prompt": ["hi"], "answer": "1"},
            "line 2: a chat prompt is a list of {role, content} with text content, got 'hi'",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "answer": "1"},
            'line 2: the models read text only: a part is {"type": "text", "text": "…"}, got \'image_url\'',
        ),
        (
            {"prompt": [{"role": "user", "content": ["x"]}], "answer": "1"},
            "line 2: the models read text only",
        ),
        ('{"problem": "b", "answer": ' + "1" * 5000 + "}", "line 2: an integer of more than 4,300 digits; put it"),
        (
            {"prompt": [{"role": "assistant", "content": "hm"}], "answer": "1"},
            "line 2: the chat prompt holds a message of 'assistant'; a problem has user, system, developer only",
        ),
        ({"problem": 3, "answer": "1"}, "line 2: the column 'problem' must hold text, got int 3"),
        ({"problem": "x" * 2**20, "answer": "1"}, "line 2: a question of 1,048,576 characters (limit 100,000)"),
        ('{"problem": "b \\ud83d", "answer": "1"}', "line 2: half a character (\\ud83d)"),
    ],
)
def test_a_broken_row_is_refused_with_its_place_and_fault(jsonl, row, says):
    assert says in refusal(jsonl(GOOD, row))


def test_a_repeated_id_names_both_lines(jsonl):
    message = refusal(
        jsonl({"id": "q1", **GOOD}, {"problem": "b", "answer": "2"}, {"id": "q1", "problem": "c", "answer": "3"})
    )
    assert "line 3: the id 'q1' is already used at" in message
    assert "line 1; give each problem its own" in message


def test_a_source_that_is_not_there_is_named(tmp_path, jsonl, monkeypatch):
    assert "there is no such file" in refusal(str(tmp_path / "none.jsonl"))
    assert "a .csv file; known kinds: .jsonl, .json, .parquet" in refusal(jsonl("a,b", name="rows.csv"))
    assert "holds no problem" in refusal(jsonl("", name="empty.jsonl"))
    assert "must look like name, name:split or name:config:split" in refusal("a:b:c:d")
    assert "dataset 'nobody/nothing:test' (config default, split 'test') could not be loaded" in refusal(
        "nobody/nothing:test"
    )
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    assert "not a readable parquet file" in refusal(str(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(
    ("name", "count"), [("math500", 500), ("amc23", 40), ("aime24", 30), ("gsm8k_train", 7473), ("gsm8k_test", 1319)]
)
def test_every_row_of_the_benchmarks_loads(shared_data, name, count):
    problems = load_problems(str(shared_data / f"{name}.jsonl"))
    assert len(problems) == count
    assert len({problem.id for problem in problems}) == count
    assert all(problem.answer.replace("-", "").replace(".", "").isdigit() for problem in problems) or name == "math500"
