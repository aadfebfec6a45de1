"""The recipe: what is accepted, what is refused, and in which words."""

import pytest

from longshort.mixture.inputs import prepare
from longshort.preflight.checks import check_names
from longshort.recipe.schema import LongShortConfig, dump, load, lookup, parse
from longshort.types import LongShortError


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and return its path."""

    def write(text):
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def refusal(path, *overrides):
    with pytest.raises(LongShortError) as caught:
        load(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "+1e-06", "1.0e-6", "0.000001", ".000001", ".1e-5"])
def test_every_spelling_of_a_number_is_a_number(recipe, text):
    assert load(recipe(f"learning_rate: {text}")).learning_rate == 1e-6


def test_integers_booleans_and_words_keep_their_type(recipe):
    config = load(recipe("seed: 7\ndeterministic: true\noutput_dir: '1e-6'\n"))
    assert (config.seed, config.deterministic, config.output_dir) == (7, True, "1e-6")


def test_an_empty_recipe_is_all_defaults(recipe):
    assert load(recipe("# nothing\n")) == LongShortConfig()


def test_overrides_reach_into_sections_that_the_file_does_not_have(recipe):
    config = load(
        recipe("max_steps: 3\n"),
        ["max_steps=5", "long.engine.block_size=16", "loss={name: grpo}", "schedule=[long, short]"],
    )
    assert (config.max_steps, config.long.engine.block_size, config.loss.name, config.schedule) == (
        5,
        16,
        "grpo",
        ["long", "short"],
    )


def test_an_override_keeps_its_neighbours(recipe):
    config = load(recipe("loss: {name: grpo, epsilon: 0.1}\n"), ["loss.epsilon=0.3"])
    assert (config.loss.name, config.loss.epsilon) == ("grpo", 0.3)


def test_a_partial_shape_keeps_the_other_defaults_of_its_role(recipe):
    miniature = load(recipe("miniature: {long: {base_steps: 7}, short: {num_layers: 1}}")).miniature
    assert (miniature.long.base_steps, miniature.long.hidden_size, miniature.long.base_learning_rate) == (7, 128, 3e-3)
    assert (miniature.short.num_layers, miniature.short.hidden_size, miniature.short.base_learning_rate) == (
        1,
        64,
        4e-3,
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max_stpes: 3", "x.yaml: unknown key 'max_stpes'; did you mean 'max_steps'?"),
        ("trian: {max_steps: 3}", "x.yaml: unknown key 'trian.max_steps'; did you mean 'max_steps'?"),
        ("loss: {epsilon_hi: 0.3}", "x.yaml: unknown key 'loss.epsilon_hi'; did you mean 'loss.epsilon_high'?"),
        (
            "long: {engine: {block_siz: 8}}",
            "unknown key 'long.engine.block_siz'; did you mean 'long.engine.block_size'?",
        ),
        ("kv_cache_gib: 1", "unknown key 'kv_cache_gib'; did you mean 'long.engine.kv_cache_gib'?"),
        (
            "miniature: {short: {base-steps: 8}}",
            "unknown key 'miniature.short.base-steps'; did you mean 'miniature.short.base_steps'?",
        ),
        ("grading: {qqqq: 1}", "unknown key 'grading.qqqq'; known keys here: workers, timeout_s, memory_mb"),
    ],
)
def test_an_unknown_key_is_refused_with_its_path_and_the_nearest_known_one(recipe, text, says):
    assert says in refusal(recipe(text))


def test_an_unknown_override_is_refused_the_same_way(recipe):
    assert "unknown key 'trian.max_steps'; did you mean 'max_steps'?" in refusal(recipe(""), "trian.max_steps=3")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "max_steps: ten",
            "x.yaml: max_steps: Input should be a valid integer, unable to parse string as an integer (got 'ten')",
        ),
        ("max_steps: yes", "x.yaml: max_steps: true/false is not a value for this setting (got True)"),
        ("learner: {zero_stage: 4}", "x.yaml: learner.zero_stage: Input should be 1, 2 or 3 (got 4)"),
        ("learner: {ranks: 2}", "ranks (2), offload (false) and extra ({}) are for backend deepspeed"),
        (
            "{learner: {backend: deepspeed, ranks: 4}, learner_gpus: 0.5}",
            "learner_gpus is 0.5 but each of 4 learner.ranks takes one GPU",
        ),
        (
            "learner_gpus: 1.5",
            "x.yaml: learner_gpus: more than one GPU is a whole number; a share is below 1 (got 1.5)",
        ),
        ("seed: -1", "x.yaml: seed: Input should be greater than or equal to 0 (got -1)"),
        ("seed: 4294967296", "x.yaml: seed: Input should be less than 4294967296 (got 4294967296)"),
        ('output_dir: "a\\ud83d"', "x.yaml: output_dir: half a character, which is no text"),
        ('output_dir: "a\\0b"', "x.yaml: output_dir: a path holds no null character"),
        ("max_steps: 0", "x.yaml: max_steps: Input should be greater than 0 (got 0)"),
        ("num_generations: 1", "x.yaml: num_generations: Input should be greater than or equal to 2 (got 1)"),
        ("learning_rate: .nan", "x.yaml: learning_rate: Input should be a finite number (got nan)"),
        ("learning_rate: 1e400", "x.yaml: learning_rate: Input should be a finite number (got inf)"),
        ("long: qwen", "x.yaml: long: Input should be a valid dictionary or instance of RoleConfig (got 'qwen')"),
        ("schedule: both", "x.yaml: schedule: Input should be 'joint' (got 'both')"),
        ("schedule: [long, middle]", "x.yaml: schedule.1: Input should be 'long' or 'short' (got 'middle')"),
        ("reward: {ramp_start: 0.9}", "x.yaml: reward: ramp_end (0.4) must not come before ramp_start (0.9)"),
        (
            "miniature: {long: {hidden_size: 130}}",
            "x.yaml: miniature.long: hidden_size (130) must be a multiple of num_heads (4)",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_path_and_itself(recipe, text, says):
    assert says in refusal(recipe(text))


def test_all_mistakes_are_reported_at_once(recipe):
    assert refusal(recipe("seed: x\nmax_stpes: 1\n")).count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "seed: !!python/object/apply:os.system ['echo hacked']",
            "the tag 'tag:yaml.org,2002:python/object/apply:os.system' is refused",
        ),
        ("seed: !!python/name:os.system", "is refused: a recipe holds plain values only"),
        ("a: 1\nseed: !mine 3", "x.yaml, line 2: the tag '!mine' is refused"),
        ("seed: 1\nmax_steps: 2\nseed: 3\n", "x.yaml, line 3: the key 'seed' appears twice"),
        ("long:\n  price: 1\n  price: 2\n", "x.yaml, line 3: the key 'price' appears twice"),
        ("? [seed, 1]\n: 3", "unhashable"),
        ("long: {price: 1", "x.yaml, line 1"),
        ("seed: 2001-99-99", "x.yaml: a value cannot be read (month must be in 1..12); put text between quotes"),
        (f"seed: {'1' * 5000}", "x.yaml: a value cannot be read (Exceeds the limit (4300 digits)"),
        ("[" * 5000, "x.yaml: a value cannot be read (maximum recursion depth exceeded"),
        ("seed: \x07", "not valid YAML, or not UTF-8"),
        ("- 1\n- 2\n", "a recipe is a mapping of settings (key: value), got list"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(recipe, text, says):
    assert says in refusal(recipe(text))


def test_a_missing_recipe_and_a_wrong_encoding_are_named(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("output_dir: caf\xe9".encode("latin-1"))
    assert "not UTF-8" in refusal(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("max_steps", "override 'max_steps' must look like key.sub=value"),
        ("=3", "override '=3' must look like key.sub=value"),
        ("max_steps.deep=3", "'max_steps' holds a value, not a section"),
        ("seed=[1", "override 'seed=[1', line 1"),
        ("seed=!!python/name:os.system", "is refused"),
    ],
)
def test_a_bad_override_is_refused(recipe, override, says):
    assert says in refusal(recipe("max_steps: 3"), override)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("long.instructions", ""),
        ("protocol.final_notice", ""),
        ("dataset", ""),
        ("eval.data_dir", ""),
        ("short.sft.deepspeed", ""),
        ("long.engine.extra.quantization", ""),
        ("eval.num_problems", None),
        ("stages", None),
        ("mixture", None),
    ],
)
def test_an_override_without_a_value_is_empty_text_where_text_is_meant_else_null(recipe, key, value):
    tree = load(recipe("mixture: {short_data: a, long_data: b}"), [f"{key}="]).model_dump()
    for part in key.split("."):
        tree = tree[part]
    assert tree == value


def test_an_override_of_null_is_null_where_text_is_meant(recipe):
    assert load(recipe("long: {instructions: Think.}"), ["long.instructions=null"]).long.instructions is None


def test_an_override_without_a_value_is_refused_where_one_is_needed(recipe):
    assert "max_steps: Input should be a valid integer (got None)" in refusal(recipe(""), "max_steps=")


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("Answer: yes", "Answer: yes"),
        ("The #1 rule # be brief", "The #1 rule # be brief"),
        ("2024", "2024"),
        ("no", "no"),
        ("{x} of %d", "{x} of %d"),
        ("'tis so", "'tis so"),
        ("'quoted'", "quoted"),
        ('"two\\nlines"', "two\nlines"),
    ],
)
def test_a_text_setting_of_the_command_line_is_what_is_written(recipe, written, text):
    assert load(recipe(""), [f"long.instructions={written}"]).long.instructions == text


PATHS = """
output_dir: ~/runs/x
dataset: $DATA/train.jsonl
long: {model: "${DATA}/long", lora: {adapter: ~/adapter}, sft: {deepspeed: ~/zero.json}}
short: {model: ~/short}
coldstart:
  traces: ~/traces.jsonl
  instruct: {model: ~/instruct}
  rollout: {model: ~/rollout}
mixture:
  short_data: ~/short.jsonl
  long_data: ~/long.jsonl
  short_bound: ~/short
  long_bound: ~/long
  dev_dataset: ~/dev.jsonl
eval:
  data_dir: ~/benchmarks
  benchmarks: [~/a.jsonl, {name: $DATA/b.jsonl}, miniature:dev]
  systems: [pair, {name: other, long: ~/long, short: trained}]
  cross_play: [~/runs/y, trained]
"""


def test_a_home_and_variables_in_the_paths_of_a_recipe_mean_what_they_mean_to_a_shell(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("DATA", "/data")
    config = load(recipe(PATHS))
    assert config.output_dir == "/home/me/runs/x"
    assert config.dataset == "/data/train.jsonl"
    assert (config.long.model, config.short.model) == ("/data/long", "/home/me/short")
    assert "~" not in dump(config)
    assert "$" not in dump(config)
    assert load(recipe(dump(config))) == config


def test_a_home_in_an_override_is_the_home_folder(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert load(recipe(""), ["output_dir=~/runs/x"]).output_dir == "/home/me/runs/x"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("$NOT_SET_HERE/x", "output_dir: the variable $NOT_SET_HERE is not set; set it, or write the path without it"),
        ("${NOT_SET_HERE}", "output_dir: the variable $NOT_SET_HERE is not set"),
        ("x/${NOT_SET_HERE:-runs}", "output_dir: '${NOT_SET_HERE:-runs}' is not worked out here; write $NAME or"),
        ("$(pwd)/x", "output_dir: '$(pwd)/x' is not worked out here"),
        (
            "~nobody_here/x",
            "output_dir: there is no home folder '~nobody_here'; if a file is named so, write ./~nobody",
        ),
    ],
)
def test_a_variable_or_a_home_that_is_not_there_is_refused(recipe, path, says):
    assert says in refusal(recipe(f"output_dir: {path}"))


def test_results_need_a_folder_with_a_name(recipe):
    assert "output_dir: empty; name the folder of the results (the folder you are in is .) (got '')" in refusal(
        recipe(""), "output_dir="
    )


def test_signs_that_a_shell_leaves_alone_are_left_alone(recipe):
    assert load(recipe("output_dir: runs/5$ a~b $1")).output_dir == "runs/5$ a~b $1"


def test_the_recipe_itself_may_be_in_the_home_folder(recipe, monkeypatch):
    monkeypatch.setenv("HOME", str(recipe("seed: 7").parent))
    assert load("~/x.yaml").seed == 7


def test_dump_writes_a_recipe_that_reads_back_equal(recipe):
    config = parse(
        {
            "learning_rate": 1e-6,
            "schedule": ["long", "short"],
            "report_to": ["wandb"],
            "miniature": {"short": {"base_steps": 9}},
            "long": {"instructions": "", "engine": {"extra": {"quantization": "fp8", "seed": 3}}},
            "protocol": {"final_notice": "Ende: \u201efertig\u201c\n"},
        }
    )
    assert load(recipe(dump(config))) == config
    assert "learning_rate: 1.0e-06" in dump(config)


def test_the_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        LongShortConfig().seed = 3


def test_a_role_may_override_the_learning_rate():
    config = parse({"learning_rate": 1e-4, "short": {"learning_rate": 3e-4, "price": 0.2}})
    assert (config.learning_rate_of("long"), config.learning_rate_of("short"), config.prices) == (
        1e-4,
        3e-4,
        {"long": 1.0, "short": 0.2},
    )


def test_lookup_lists_the_known_names():
    table = {"grpo": 1, "dr_grpo": 2}
    assert lookup(table, "grpo", "loss.name") == 1
    with pytest.raises(
        LongShortError, match=r"^loss\.name: 'grppo' is not known; did you mean 'grpo'\? known: grpo, dr_grpo$"
    ):
        lookup(table, "grppo", "loss.name")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": {"name": "grppo"}}, r"loss\.name: 'grppo' is not known; did you mean 'grpo'\?"),
        (
            {"loss": {"importance_correction": "token_trunc"}},
            r"loss\.importance_correction: 'token_trunc' is not known; did you mean 'token_truncate'\? known: .*none",
        ),
        ({"reward": {"length": {"kind": "kimmi"}}}, r"reward\.length\.kind: 'kimmi' .* did you mean 'kimi'\?"),
        ({"lr_scheduler_type": "cosin"}, r"lr_scheduler_type: 'cosin' .* known: cosine, linear, constant"),
        ({"report_to": ["wandb", "tensorbord"]}, r"report_to: 'tensorbord' .* did you mean 'tensorboard'\?"),
    ],
)
def test_a_misspelled_name_is_refused_before_anything_starts(settings, says):
    with pytest.raises(LongShortError, match=says):
        check_names(parse(settings))


def test_a_misspelled_weighting_is_refused_before_the_mixture_reads_anything():
    mixture = {"short_data": "none", "long_data": "none", "dev_dataset": "none", "weighting": "dynamc"}
    with pytest.raises(LongShortError, match=r"mixture\.weighting: 'dynamc' is not known; did you mean 'dynamic'\?"):
        prepare(parse({"mixture": mixture}))
