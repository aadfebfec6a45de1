"""Proof that a change of the code changed no result: one short deterministic run, as digests that can be compared.

    python -m tests.support.fingerprint before.json    # on the old code
    python -m tests.support.fingerprint after.json     # on the new code: both files must be equal

It runs the command line only (coldstart's steps up to its rows, train with the torch and the DeepSpeed learner,
eval), with plain transformers engines, and digests what lies on disk afterwards: cold-start lines, metrics, episodes,
the checkpoints' tensors and state, evaluation results. Timings and counters of processes are left out; everything
else is compared to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file

UNSTABLE = (
    "perf/",
    "rollout/",
    "busy",
    "seconds",
    "_s",
    "created",
    "made",
    "versions",
    "folder",
    "weight_sync/",
    "grading/",
    "longshort",
)
"""Parts of names whose values depend on the clock, the machine or the path of the run."""
GAPS = ("gaps", "sampling/", "logprobs", "logprob")
"""Engine log-probs depend in the last bits on which requests share a wave, so they are left out as well."""
STEPS = ("chunk", "rollouts", "importance", "partition", "rewrite", "rows")


def stable(value: Any) -> Any:
    """The value without its unstable entries."""
    if isinstance(value, dict):
        return {
            key: stable(item)
            for key, item in sorted(value.items())
            if not any(part in key for part in (*UNSTABLE, *GAPS))
        }
    return [stable(item) for item in value] if isinstance(value, list) else value


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def digest_of(path: Path, hidden: str) -> str:
    """Digest one file; `hidden` is the folder of this run, which stands in some of them."""
    if path.suffix == ".jsonl":
        rows = [stable(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        rows.sort(key=lambda row: json.dumps(row, sort_keys=True))
        return digest(json.dumps(rows, sort_keys=True).replace(hidden, ""))
    if path.suffix == ".json":
        return digest(
            json.dumps(stable(json.loads(path.read_text(encoding="utf-8"))), sort_keys=True).replace(hidden, "")
        )
    tensors = {
        name: tensor for name, tensor in load_file(path).items() if not name.startswith("rng/")
    }  # a fresh process's own
    return digest(b"".join(name.encode() + tensors[name].contiguous().numpy().tobytes() for name in sorted(tensors)))


def make_models(folder: Path) -> dict[str, str]:
    """Two models that close most turns with a tag (the tests' own)."""
    from tests.support import tiny_models

    return tiny_models.make_speaking(folder)


def recipe(folder: Path, models: dict[str, str], learner: dict[str, Any]) -> Path:
    """A recipe file small enough for two minutes; `learner` is its section of that name."""
    from longshort.miniature.world import make_problems, teacher_trace

    problems = make_problems("train", 64, 0)
    rows = [{"id": p.id, "problem": p.question, "answer": p.answer} for p in problems]
    traces = [
        {"problem": p.question, "answer": p.answer, "response": teacher_trace(p, random.Random(i))}
        for i, p in enumerate(problems[:24])
    ]
    for name, lines in (("train", rows), ("traces", traces)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    engine = {"backend": "transformers", "max_model_len": 256, "max_num_seqs": 16, "kv_cache_gib": 0.125}
    settings = {
        "output_dir": str(folder / "run"),
        "deterministic": True,
        "dataset": str(folder / "train.jsonl"),
        "protocol": {"tags": "special", "max_exchanges": 3, "episode_tokens": 120, "final_notice": "Last turn. "},
        "max_steps": 3,
        "num_problems": 4,
        "num_generations": 4,
        "learning_rate": 1e-3,
        "scale_rewards": "none",
        "save_steps": 3,
        "learner": learner,
        "loss": {"beta": 0.05},
        "eval": {"benchmarks": ["miniature:dev"], "num_problems": 12, "systems": ["pair", "single_long", "long_alone"]},
    }
    for role in ("long", "short"):
        settings[role] = {"model": models[role], "turn_tokens": 32, "instructions": "", "engine": engine}
    cold = {"importance": {"num_rollouts": 2, "max_tokens": 8, "instructions": ""}, "rewrite": {"rewriter": "verbatim"}}
    settings["coldstart"] = cold | {"traces": str(folder / "traces.jsonl")}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def longshort(*arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "longshort.cli", *map(str, arguments)], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        sys.exit(
            f"longshort {' '.join(map(str, arguments))} exited with "
            f"{done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


def main(output: Path) -> None:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    digests: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(folder / "models")
        learners = {"torch": {}, "deepspeed": {"backend": "deepspeed", "ranks": 2, "zero_stage": 2}}
        for learner, section in learners.items():
            place = folder / learner
            place.mkdir()
            path = recipe(place, models, section)
            if learner == "torch":
                for step in STEPS:
                    print(f"{learner}: {step}", flush=True)
                    longshort(step, path)
            print(f"{learner}: train", flush=True)
            longshort("train", path, "coldstart=null")
            print(f"{learner}: eval", flush=True)
            longshort("eval", path, "coldstart=null")
            kinds = ("*.jsonl", "*.json", "*.safetensors")
            for file in sorted(
                file for kind in kinds for file in (place / "run").rglob(kind) if "manifest" not in file.name
            ):
                digests[f"{learner}/{file.relative_to(place / 'run')}"] = digest_of(file, str(folder))
        for file in sorted((folder / "models").rglob("*.safetensors")):
            digests[f"models/{file.relative_to(folder / 'models')}"] = digest_of(file, str(folder))
    output.write_text(json.dumps(digests, indent=1) + "\n")
    print(f"{len(digests)} digests written to {output}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
