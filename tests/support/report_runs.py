"""Run folders as training and evaluations leave them, made from nothing, for the tests of the report.

python -m tests.support.report_runs FOLDER   writes FOLDER/{demo,demo-random}, a report of both and one of the first
"""

import json
import math
import random
import sys
from functools import cache
from pathlib import Path

from longshort.dialogue.encoding import encode_plain
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.schema import LongShortConfig, dump
from longshort.report.report_page import write_report

ROLES = ("long", "short")
HOSTILE = (
    "Wait </script><script>window.hacked=1</script> <img src=x onerror=window.hacked=1> </answer> <think> @0@ \\frac{ "
    "\u2028 \ud800 \0 \u202eesrever\u202c &amp; <!-- " + "x" * 2_000
)
"""What a model, a dataset or a person may write to break a page; \ud800 is a surrogate that UTF-8 cannot encode."""
SHOWN_HOSTILE = HOSTILE.replace("\ud800", "\ufffd")
RECIPE = {
    "max_steps": 80,
    "long": {"model": "models/long", "learning_rate": 1e-4},
    "short": {"model": "models/short", "price": 0.25, "learning_rate": 3e-4},
    "protocol": {"max_exchanges": 3, "episode_tokens": 400},
    "dataset": "miniature:train",
}


def write_lines(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(folder: Path, **settings) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump(LongShortConfig(output_dir=str(folder.name), **(RECIPE | settings))))


def metrics_row(step: int, steps: int, rng: random.Random, slow: float = 1.0) -> dict:
    """A step of a training that learns, with every metric that one logs."""
    part = 1 - math.exp(-4 * step / steps / slow)
    noise = lambda size: rng.gauss(0, size)  # noqa: E731
    accuracy = min(1.0, max(0.0, 0.42 + 0.5 * part + noise(0.03)))
    long, short = 31 - 9 * part + noise(0.7), 13 + 4 * part + noise(0.4)
    row = {
        "step": step,
        "team/accuracy": accuracy,
        "team/tokens": long + short,
        "team/tokens/long": long,
        "team/tokens/short": short,
        "team/cost": long + 0.25 * short,
        "team/turns": 3.4 - 1.1 * part + noise(0.06),
        "team/hand_back_rate": min(1.0, max(0.0, 0.62 - 0.4 * part + noise(0.03))),
        "team/format": 0.9 + 0.09 * part,
        "team/format/long": 0.92 + 0.07 * part,
        "team/format/short": 0.97 + 0.02 * part,
        "team/reward/long": accuracy + 0.45,
        "team/reward/short": accuracy + 0.48,
        "reward/length": -0.02 + 0.06 * part + noise(0.01),
        "reward/mu": min(0.5, max(0.0, 2.5 * (step / steps - 0.2))),
        "perf/rollout_s": 2.1,
        "perf/update_s": 1.2,
        "perf/step_s": 3.3 - 0.6 * part + abs(noise(0.25)),
    }
    for role, size in zip(ROLES, (1.0, 0.6), strict=True):
        row |= {
            f"{role}/entropy": size * (0.42 - 0.25 * part) + abs(noise(0.01)),
            f"{role}/clip_ratio/low_mean": abs(noise(0.004)) * size,
            f"{role}/clip_ratio/high_mean": abs(noise(0.006)) * size,
            f"{role}/sampling/sampling_logp_difference/mean": size * 0.0011 + abs(noise(0.0001)),
            f"{role}/sampling/sampling_logp_difference/max": size * 0.05 * math.exp(noise(0.7)),
            f"{role}/sampling/importance_sampling_ratio/mean": 1 + noise(0.0006),
            f"{role}/sampling/importance_sampling_ratio/max": 1 + abs(noise(0.05)),
            f"{role}/learning_rate": 1e-4 * (1 + math.cos(math.pi * step / steps)) / 2 * (1 if role == "long" else 3),
            f"{role}/grad_norm": size * (0.3 + 0.5 * math.exp(-6 * part)) * math.exp(noise(0.25)),
            f"rollout/idle_frac/{role}": min(1.0, max(0.0, (0.35 if role == "long" else 0.6) + noise(0.04))),
        }
    if step % 20 == 0:
        row |= {"eval/accuracy": accuracy + 0.02, "eval/tokens": long + short - 0.5, "eval/cost": long + 0.25 * short}
    return row


def measures(accuracy: float, long: float, short: float, n: int = 400, **more) -> dict:
    """A row of the common measures; `more` replaces and adds."""
    parts = {role: size for role, size in (("long", long), ("short", short)) if size}
    error = (accuracy * (1 - accuracy) / n) ** 0.5
    return {
        "n": n,
        "samples": 1,
        "accuracy": accuracy,
        "stderr": error,
        "interval": [max(0.0, accuracy - 1.96 * error), min(1.0, accuracy + 1.96 * error)],
        "pass@1": accuracy,
        "tokens": long + short,
        "characters": 3.1 * (long + short),
        "cost": long + 0.25 * short,
        "turns": 2.4,
        "hand_back_rate": 0.31,
        "hand_backs": 0.42,
        "format": 0.98,
        "format/long": 0.98,
        "format/short": 0.99,
        "stop/answered": 0.97,
        "stop/max_turns": 0.02,
        "stop/turn_length": 0.01,
        "rethinking": 0.3,
        "rethinking_rate": 0.22,
        **{f"tokens/{role}": size for role, size in parts.items()},
        **{f"characters/{role}": 3.1 * size for role, size in parts.items()},
    } | more


def pair_of(long: str, short: str, title: str) -> dict:
    return {"title": title, "models": {"long": long, "short": short}, "protocol": "long_short"}


def results(rows: list[dict], systems: dict, **more) -> dict:
    """An eval/<name>.json of the miniature's test split."""
    return {
        "name": "results",
        "made": "2026-11-21T14:00:00+00:00",
        "longshort": "0.1.0",
        "versions": {"torch": "2.9.0"},
        "settings": {"num_samples": 1, "temperature": 1.0},
        "faults": [],
        "benchmarks": {
            "miniature:test": {
                "title": "Miniature",
                "source": "miniature:test",
                "problems": 400,
                "golds_parsed": 400,
                "golds_verified": 400,
            }
        },
        "systems": systems,
        "results": rows,
        "comparisons": [],
        "cross_play": None,
    } | more


def row(system: str, values: dict, decoding: str = "sampled", benchmark: str = "miniature:test") -> dict:
    return {"system": system, "benchmark": benchmark, "decoding": decoding} | values


def write_results(folder: Path, name: str, content: dict) -> None:
    (folder / "eval").mkdir(parents=True, exist_ok=True)
    (folder / "eval" / f"{name}.json").write_text(json.dumps(content))


def demo_results(shift: float) -> dict:
    """Five systems, sampled and greedy, compared with the single long model, and a cross-play of three checkpoints."""
    rows, alone = [], {"protocol": "solo"}
    systems = {
        "pair": pair_of("checkpoint-80/long", "checkpoint-80/short", "pair, trained"),
        "cold_start": pair_of("sft/long", "sft/short", "pair, after cold start"),
        "single_long": alone | {"title": "single long model", "models": {"long": "base-long"}},
        "single_long@3": alone
        | {"title": "single long model, stopped after 3 thoughts", "models": {"long": "base-long"}},
        "long_alone": alone | {"title": "trained long model alone", "models": {"long": "checkpoint-80/long"}},
    }
    base = measures(0.782, 103.7, 0, rethinking=2.4, rethinking_rate=0.93, turns=1.0, aes=0.0, aes_characters=0.0)
    measured = {
        "pair": measures(0.935 - shift, 24.2, 16.7, aes=1.14 - shift, aes_characters=1.2, aes_cost=1.3),
        "cold_start": measures(
            0.490, 31.5, 13.0, **{"aes": -1.21, "stop/answered": 0.81, "stop/max_turns": 0.12, "stop/malformed": 0.07}
        ),
        "single_long": base,
        "single_long@3": measures(0.351, 38.0, 0, aes=-2.1),
        "long_alone": measures(0.771, 96.0, 0, aes=0.01),
    }
    for decoding, gain in (("sampled", 0.0), ("greedy", 0.04)):
        rows += [
            row(name, values | {"accuracy": values["accuracy"] + gain}, decoding) for name, values in measured.items()
        ]
    checkpoints = ["cold_start", "checkpoint-40", "checkpoint-80"]
    for i, long in enumerate(checkpoints):
        for j, short in enumerate(checkpoints):
            name = f"long@{long}+short@{short}"
            systems[name] = pair_of(f"{long}/long", f"{short}/short", f"{long} with {short}")
            rows.append(row(name, measures(0.5 + 0.17 * i + 0.04 * j - shift, 31 - 3 * i, 13 + j)))
    against = {
        "accuracy": (0.153, 0.108, 0.198, 0.0001),
        "tokens": (-62.8, -64.9, -60.6, 0.0001),
        "cost": (-75.3, -77.1, -73.6, 0.0001),
    }
    comparisons = [
        {
            "benchmark": "miniature:test",
            "decoding": "sampled",
            "system": "pair",
            "base": "single_long",
            "metric": metric,
        }
        | {"difference": difference, "interval": [low, high], "p": p}
        for metric, (difference, low, high, p) in against.items()
    ]
    return results(rows, systems, comparisons=comparisons, cross_play={"long": checkpoints, "short": checkpoints})


def demo_training(shift: float) -> dict:
    """The evaluation that a training makes of its checkpoints."""
    accuracies = {20: 0.66, 40: 0.81, 60: 0.88, 80: 0.93}
    systems = {f"step-{step}": pair_of("live/long", "live/short", f"step {step}") for step in accuracies}
    return results(
        [
            row(f"step-{step}", measures(value - shift, 31 - step / 10, 13 + step / 20))
            for step, value in accuracies.items()
        ],
        systems,
    )


@cache
def tokenizer(role: str):
    return build_tokenizer(role)


def turn(role: str, text: str, stop: str, logprobs=None, version: int = 3) -> dict:
    """A turn as episodes have it; the miniature's tokenizer gives the ids, and each has log-prob ln 0.5 unless said."""
    ids = list(encode_plain(tokenizer(role), text.replace("\ud800", "?")))
    ids += [tokenizer(role).convert_tokens_to_ids(stop)] if stop.startswith("<") else []
    logprobs = [-0.6931] * len(ids) if logprobs is None else logprobs
    return {"role": role, "text": text, "stop": stop, "version": version, "context_ids": [7, 8]} | {
        "token_ids": ids,
        "logprobs": logprobs,
    }


def line(turns: list[dict], problem: str = "p", question: str = "1+1?", stop: str = "answered", **more) -> dict:
    """An episode's line; `more` is what training or an evaluation adds."""
    return {"problem": {"id": problem, "question": question, "answer": "2"}, "stop": stop, "turns": turns} | more


def trained(step: int, turns: list[dict], right: bool = True, **more) -> dict:
    """A line of training."""
    scores = {"reward": {"long": 1.5, "short": 1.5}, "terms": {"correct": float(right)}}
    return line(turns, **({"step": step, "advantages": {"long": 0.25, "short": -0.25}} | scores | more))


def graded(turns: list[dict], right: bool = True, **more) -> dict:
    """A line of an evaluation."""
    return line(turns, id="p#0", reason="match" if right else "no_answer", correct=right, sample=0, **more)


def write_graded(folder: Path, rows, evaluation="final", system="pair", benchmark="math", decoding="greedy") -> Path:
    """An evaluation's file of episodes, with the manifest that says what it holds."""
    path = folder / "eval" / evaluation / f"{system}.{benchmark}.{decoding}.jsonl"
    write_lines(path, rows)
    about = {"system": system, "benchmark": benchmark, "decoding": decoding}
    path.with_suffix(".manifest.json").write_text(json.dumps({"about": about}))
    return path


def demo_episode(step: int, number: int, rng: random.Random) -> dict:
    """A dialogue of two turns about one of the miniature's problems."""
    answer = str((63 * number + 12) % 10)
    said = (("long", f"7*{number}={7 * number}", "</think>"), ("short", answer, "</answer>"))
    turns = [turn(*each, version=step) for each in said]
    for each in turns:
        each["logprobs"] = [-round(rng.expovariate(1) * rng.choice((0.01, 1.5)), 4) for _ in each["token_ids"]]
    gaps = {each["role"]: [round(rng.gauss(0, 0.03), 4) for _ in each["token_ids"]] for each in turns}
    return trained(step, turns, rng.random() < 0.8, problem=f"p{number}", question=f"7*{number}*9+12=?", gaps=gaps)


def write_demo(
    folder: Path, *, seed: int = 0, slow: float = 1.0, shift: float = 0.0, steps: int = 80, **settings
) -> Path:
    """A whole run's folder."""
    rng = random.Random(seed)
    write_recipe(folder, seed=seed, **settings)
    write_lines(folder / "metrics.jsonl", (metrics_row(step, steps, rng, slow) for step in range(1, steps + 1)))
    write_results(folder, "results", demo_results(shift))
    write_results(folder, "training", demo_training(shift))
    for role in ROLES:
        tokenizer(role).save_pretrained(folder / f"checkpoint-{steps}" / role)
    for step in (1, steps):
        rows = (demo_episode(step, number, rng) for number in range(8))
        write_lines(folder / "episodes" / f"step-{step:06d}.jsonl", rows)
    said = [turn("long", "1+1", "</think>"), turn("short", "2", "</answer>")]
    write_graded(folder, [graded(said), graded(said, False)], "results", "pair", "miniature:test", "sampled")
    return folder


def hostile_run(folder: Path) -> Path:
    """Write a run whose names and texts try to break the page; return its folder."""
    dataset = HOSTILE[:150].translate({0xD800: None, 0: None})  # a recipe's paths hold neither
    run = write_demo(folder / "<img src=x onerror=window.hacked=1> $\\frac{", steps=6, dataset=dataset)
    content = demo_results(0.0)
    content["systems"]["pair"]["title"] = content["benchmarks"]["miniature:test"]["title"] = HOSTILE
    write_results(run, "results", content)
    metrics = {"step": 1, f"reward/{HOSTILE}": 1.0, "team/accuracy": 0.5, "\ud800": "x"}
    write_lines(run / "metrics.jsonl", [metrics])
    return run


if __name__ == "__main__":
    to = Path(sys.argv[1])
    traces = {"traces": "miniature:train"}
    both = [
        write_demo(to / "demo", coldstart=traces | {"partition": {"rule": "metric"}}),
        write_demo(
            to / "demo-random", seed=1, slow=1.6, shift=0.09, coldstart=traces | {"partition": {"rule": "random"}}
        ),
    ]
    print(write_report(both[:1]))
    print(write_report(both, output=to / "both.html"))
