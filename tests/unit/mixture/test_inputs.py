"""What a mixture run is given: which traces it can use, how it is fine-tuned, and what is refused."""

import json

import pytest

from longshort.mixture.inputs import as_sample, prepare
from longshort.recipe.schema import parse
from longshort.types import LongShortError
from tests.support.mixture_world import SHORT_TRACE, make_world, mixture_config


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"))


def test_traces_that_cannot_be_used_are_counted(world, tmp_path):
    hard = (world / "hard.jsonl").read_text() + (world / "dev.jsonl").read_text().splitlines()[0] + "\n"
    hard += (
        json.dumps({"problem": "a", "answer": "7", "response": "7" * 200})
        + "\n"
        + json.dumps({"problem": "b", "answer": "7"})
        + "\n"
    )
    (tmp_path / "hard.jsonl").write_text(hard)
    job = prepare(mixture_config(world, tmp_path, {"long_data": str(tmp_path / "hard.jsonl")}))
    assert job.counts["short_data"] == {"usable": 16}
    assert job.counts["long_data"] == {
        "usable": 24,
        "on dev problems": 1,
        "longer than 128 tokens": 1,
        "empty_response": 1,
    }
    assert [len(traces) for traces in job.traces] == [16, 24]
    sample = as_sample(job.traces[0][0], job.protocol, job.tokenizer)
    assert (
        job.tokenizer.decode([t for t, m in zip(sample.token_ids, sample.mask, strict=True) if m])
        == SHORT_TRACE + "<eos>"
    )


def test_training_follows_the_roles_sft_settings_with_the_mixtures_steps_and_batches(world, tmp_path):
    tree = mixture_config(world, tmp_path, learning_rate=7.0).model_dump()
    tree["long"]["sft"] |= {"batch_size": 6, "micro_batch_size": 6}
    sft = prepare(parse(tree)).sft
    assert (sft.learning_rate, sft.lr_scheduler_type, sft.max_steps) == (1e-2, "linear", 9)
    assert (sft.batch_size, sft.micro_batch_size, sft.packing) == (4, 2, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixture": None}, "no section `mixture:`"),
        ({"mixture": {"dev_dataset": ""}}, r"mixture\.dev_dataset is empty"),
        ({"mixture": {"short_bound": "./nowhere"}}, r"mixture\.short_bound: no folder './nowhere'"),
        ({"sft": {"lora": {}}}, r"long\.sft\.lora is .*remove it"),
        ({"mixture": {"weighting": "dynamik"}}, "'dynamik' is not known; did you mean 'dynamic'"),
        (
            {"sft": {"max_length": 9}},
            r"mixture\.short_data: none of its 16 traces can be used: .*'longer than 9 tokens': 16",
        ),
        ({"model": "", "miniature": {}}, "longshort run` first \\(stage base\\)"),
        ({"model": ""}, r"long\.model is empty"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(world, tmp_path, change, message):
    tree = mixture_config(world, tmp_path).model_dump()
    tree["mixture"] = (
        change["mixture"] and tree["mixture"] | change["mixture"] if "mixture" in change else tree["mixture"]
    )
    tree["long"]["sft"] |= change.get("sft", {})
    tree["long"]["model"] = change.get("model", tree["long"]["model"])
    tree["miniature"] = change.get("miniature")
    with pytest.raises(LongShortError, match=message):
        prepare(parse(tree))
