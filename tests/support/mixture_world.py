"""A world in which the mixture of long and short traces matters.

Whatever the question, long traces end on 7 and short ones are just 3. Of the six dev problems four have the answer 7.
So the starting model, which was taught long traces, is right on four, and a model of short data alone on two.
"""

import json
from pathlib import Path

from longshort.coldstart.records import Trace
from longshort.dialogue.solo import Solo
from longshort.miniature.fitting import fit
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import build_tokenizer
from longshort.miniature.world import make_problems
from longshort.mixture.inputs import as_sample
from longshort.recipe.miniature import ModelShape
from longshort.recipe.schema import LongShortConfig, parse
from longshort.types import LONG, Problem

LONG_TRACE, SHORT_TRACE = "So the last digit is 7.\n\nCheck 7.\n\n\\boxed{7}", "\\boxed{3}"


def write_rows(path: Path, questions: list[str], answers: list[str], response: str) -> None:
    rows = [
        {"problem": question, "answer": answer, "response": response}
        for question, answer in zip(questions, answers, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_world(folder: Path) -> Path:
    """Write the data files, and a model taught long traces, into a new folder; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [problem.question for problem in make_problems("train", 46, 0)]
    write_rows(folder / "dev.jsonl", questions[:6], ["7", "7", "3", "7", "3", "7"], "unused")
    write_rows(folder / "easy.jsonl", questions[6:22], ["3"] * 16, SHORT_TRACE)
    write_rows(folder / "hard.jsonl", questions[22:], ["7"] * 24, LONG_TRACE)
    tokenizer = build_tokenizer(LONG)
    shape = ModelShape(
        hidden_size=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        intermediate_size=64,
        base_steps=1,
        base_learning_rate=1,
    )
    model = build_model(tokenizer, shape, seed=3, max_position_embeddings=128)
    problems = [Problem(id=str(i), question=question, answer="7") for i, question in enumerate(questions[22:])]
    traces = [Trace(id=problem.id, problem=problem, response=LONG_TRACE) for problem in problems]
    fit(
        model,
        [as_sample(trace, Solo(turn_tokens=48), tokenizer) for trace in traces],
        steps=40,
        batch_size=8,
        learning_rate=1e-2,
    )
    save(model, tokenizer, folder / "model")
    return folder


def mixture_config(world: Path, output: Path, mixture: dict | None = None, **changes) -> LongShortConfig:
    settings = {
        "output_dir": str(output),
        "long": {
            "model": str(world / "model"),
            "instructions": "",
            "engine": {"backend": "transformers", "max_model_len": 128, "max_num_seqs": 16},
            "sft": {"learning_rate": 1e-2, "lr_scheduler_type": "linear"},
        },
        "mixture": {
            "short_data": str(world / "easy.jsonl"),
            "long_data": str(world / "hard.jsonl"),
            "dev_dataset": str(world / "dev.jsonl"),
            "dev_problems": 6,
            "max_tokens": 48,
            "temperature": 0.0,
            "max_steps": 9,
            "update_steps": 2,
            "batch_size": 4,
            "ema": 0.25,
        }
        | (mixture or {}),
    }
    return parse(settings | changes)
