"""Peak memory of an update with and without chunked log-probs, at the vocabulary of Qwen2.5 (151,936).

`token_statistics` computes the logits of LOGITS_HELD / vocabulary tokens at once and again in the backward pass. Each
run updates the same small model (two layers of width 64, so that the head is nearly all there is) once on the same
1,024 tokens with the learner's own `policy_gradient_step`, each in a fresh process: once as it is, once with a
LOGITS_HELD that holds all logits. What counts is the process's high-water mark of resident memory less what was
resident before the step (the model is then loaded). Both must give the same log-probs and the same gradient.

The ideal limit holds, in the chunks' place, one chunk's logits and their gradient beside the model's own gradients;
each buffer once.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.common import ROOT, Figure, leave, options, say, spread

VOCABULARY, TOKENS, SAMPLES = 151_936, 1024, 8
WAYS = ("chunked", "whole")
SAME = 1e-4


def make_model():
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    ).eval()


def resident() -> int:
    """Bytes of this process in memory now."""
    import psutil

    return psutil.Process().memory_info().rss


def update(way: str, kept: Path) -> None:
    """In a process of its own: one step, its measurements to standard output, its log-probs and gradient to `kept`."""
    import random

    import torch
    from safetensors.torch import save_file

    from longshort.learning import logprobs as chunks
    from longshort.learning import step
    from longshort.recipe.sections import LossConfig
    from longshort.types import LONG, Sample

    torch.set_num_threads(1)
    if way == "whole":
        chunks.LOGITS_HELD = TOKENS * VOCABULARY
    rng = random.Random(0)
    length = TOKENS // SAMPLES
    samples = [
        Sample(
            role=LONG,
            token_ids=tuple(rng.randrange(VOCABULARY) for _ in range(length + 1)),
            mask=(0,) + (1,) * length,
            logprobs=(0.0,) + (-11.0,) * length,
            advantages=(0.0,) + ((-1.0) ** number,) * length,
        )
        for number in range(SAMPLES)
    ]
    settings = step.StepSettings(
        loss=LossConfig(importance_correction="none"),
        temperature=1.0,
        max_completion_tokens=length,
        max_grad_norm=1e9,
        num_iterations=1,
        row_tokens=0,
        batch_tokens=2 * TOKENS,
    )
    model, tally, gradient = make_model(), step.UpdateMetrics(), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(
        lambda *_: gradient.update({n: p.grad for n, p in model.named_parameters() if p.ndim == 2})
    )
    before, began = resident(), time.process_time()
    step.policy_gradient_step(model, None, optimizer, samples, settings, tally)
    peak, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, time.process_time() - began
    logprobs = torch.cat([tally.old_logprobs[i] for i in sorted(tally.old_logprobs)])
    save_file({"logprobs": logprobs} | gradient, kept)
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    chunk = 2 * 4 * min(chunks.LOGITS_HELD, TOKENS * VOCABULARY)
    print(
        json.dumps(
            {"before": before, "peak": peak, "seconds": seconds, "ideal": gradients + chunk, "tokens": len(logprobs)}
        )
    )


def in_a_fresh_process(way: str, kept: Path) -> dict:
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--update", way, str(kept)]
    return json.loads(
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )


def difference(files: dict[str, Path]) -> float:
    """The largest relative difference (of norms) between what both ways computed."""
    from safetensors.torch import load_file

    chunked, whole = (load_file(files[way]) for way in WAYS)
    return max(((chunked[name] - whole[name]).norm() / whole[name].norm()).item() for name in whole)


def main() -> None:
    if "--update" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--update", nargs=2)
        way, kept = parser.parse_args().update
        update(way, Path(kept))
        return
    asked = options(__doc__)
    rows: dict[str, list[dict]] = {way: [] for way in WAYS}
    differences = []
    with tempfile.TemporaryDirectory() as temporary:
        files = {way: Path(temporary) / f"{way}.safetensors" for way in WAYS}
        for run in range(asked.runs):
            for way in WAYS:
                rows[way].append(in_a_fresh_process(way, files[way]))
            differences.append(difference(files))
            grown = {way: (rows[way][-1]["peak"] - rows[way][-1]["before"]) / 2**20 for way in WAYS}
            say(
                f"run {run + 1}: "
                + ", ".join(f"{way} +{mib:.0f} MiB" for way, mib in grown.items())
                + f", differ by {differences[-1]:.1e}"
            )
    if max(differences) > SAME:
        raise SystemExit(
            f"chunked and whole log-probs or gradients differ by {max(differences):.1e}, more than {SAME:g}: not the "
            "same work"
        )
    growth = {way: [row["peak"] - row["before"] for row in rows[way]] for way in WAYS}
    figures = [
        Figure(
            what=f"growth of peak memory in an update of {TOKENS} tokens, chunked over whole",
            values=tuple(a / b for a, b in zip(growth["chunked"], growth["whole"], strict=True)),
            ideal=tuple(row["ideal"] / whole for row, whole in zip(rows["chunked"], growth["whole"], strict=True)),
            limit="one chunk's logits, their gradient, the model's gradients",
        ),
        Figure(
            what="processor time of that update, chunked over whole",
            values=tuple(a["seconds"] / b["seconds"] for a, b in zip(rows["chunked"], rows["whole"], strict=True)),
            ideal=(4 / 3,),
            limit="the head computed once more: 4 products in place of 3",
            form="{:.2f} x",
        ),
    ]
    notes = [
        f"{way}: "
        + f"MiB resident before the step {spread([row['before'] / 2**20 for row in rows[way]], '{:.0f}')}, "
        + f"at its peak {spread([row['peak'] / 2**20 for row in rows[way]], '{:.0f}')}; "
        + f"processor seconds {spread([row['seconds'] for row in rows[way]])}"
        for way in WAYS
    ]
    notes.append(f"largest relative difference of log-probs or a gradient between the two: {max(differences):.1e}")
    leave("memory", __doc__, figures, asked.results, notes)


if __name__ == "__main__":
    main()
