"""Ranks for tests/learners/test_deepspeed_learner.py: processes that run one function, each as its rank, over gloo.

    python -m tests.support.deepspeed_ranks <folder> <rank> <ranks> <function> [<argument> ...]

What the function returns on rank 0 is left in <folder>/result.pt.
"""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from longshort.backends.learners.torch_learner import TorchLearner
from longshort.backends.weights import weight_outbox
from longshort.backends.weights.weight_outbox import parcel
from longshort.learning import logprobs
from longshort.recipe.schema import LongShortConfig
from longshort.types import LONG, LongShortError, Sample
from tests.support.learning_cases import VOCABULARY, sample_like, save_tiny

SAMPLES = [
    sample_like(seed, prompt=2 + seed % 3, sampled=3 + seed % 4, advantage=[1.0, -0.5, 2.0][seed % 3])
    for seed in range(6)
]
LONGEST = max(len(sample.token_ids) for sample in SAMPLES)
CUTS = {
    f"{name} {rows}": {"row_tokens": row_tokens, "batch_tokens": rows * row_tokens}
    for name, row_tokens in (("padded", LONGEST), ("packed", 2 * LONGEST))
    for rows in (1, 2, 6)
}
"""Rows of one sample each, or of about two; 1, 2 or 6 rows in a micro-batch."""


PARTED = {1: {}, 2: {}, 3: {"stage3_param_persistence_threshold": 0}}
"""ZeRO-3 keeps small weights whole, and all of a tiny model's are small."""


def recipe(**settings) -> LongShortConfig:
    learner = {"backend": "deepspeed"} | settings.pop("learner", {})
    return LongShortConfig(
        **{
            "learning_rate": 1e-3,
            "warmup_ratio": 0.0,
            "max_grad_norm": 0.5,
            "lr_scheduler_type": "constant",
            "learner": learner,
        }
        | settings
    )


def plain(config: LongShortConfig) -> LongShortConfig:
    """The same recipe for the torch learner."""
    return config.model_copy(update={"learner": LongShortConfig().learner})


def learner_of(folder: str, config: LongShortConfig, **options):
    from longshort.backends.learners.deepspeed_learner import DeepSpeedLearner

    return DeepSpeedLearner.from_pretrained(LONG, folder, config, 4, **options)


def gradient_of(learner, samples: list[Sample]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The whole gradient of an update, before clipping, and the update's report."""
    from deepspeed.utils import safe_get_full_grad

    caught, step = {}, learner.policy.step

    def catch_and_step() -> None:
        caught.update({name: safe_get_full_grad(p).detach().clone() for name, p in learner.model.named_parameters()})
        step()

    learner.policy.step = catch_and_step
    report = learner.update(samples)
    learner.policy.step = step
    return caught, report


def torch_gradient_of(learner: TorchLearner, samples: list[Sample]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    caught, clip = {}, torch.nn.utils.clip_grad_norm_

    def catch_and_clip(parameters, max_norm):
        caught.update({name: p.grad.clone() for name, p in learner.model.named_parameters()})
        return clip(parameters, max_norm)

    torch.nn.utils.clip_grad_norm_ = catch_and_clip
    try:
        return caught, learner.update(samples)
    finally:
        torch.nn.utils.clip_grad_norm_ = clip


def two_updates(learner, take_gradient) -> dict:
    gradient, report = take_gradient(learner, SAMPLES)
    gaps = learner.gaps()
    learner.update(SAMPLES[::-1])
    return {"gradient": gradient, "report": report, "gaps": gaps, "weights": learner.weights()}


def equality(folder: str, stages: str) -> dict:
    """(stage, cut) -> what two updates did."""
    results = {}
    for stage in map(int, stages):
        for cut, sizes in CUTS.items():
            learner = learner_of(folder, recipe(learner=settings_of(stage), **sizes))
            results[stage, cut] = two_updates(learner, gradient_of)
    return results


def settings_of(stage: int, **learner) -> dict:
    return {"zero_stage": stage, "extra": PARTED[stage], **learner}


def variants(folder: str, tied: str) -> dict:
    """What else may be set, each against its own torch learner: name -> what two updates did."""
    results = {}
    for name, stage, model, changes in VARIANTS:
        chosen = recipe(
            learner=settings_of(stage, **changes.get("learner", {})),
            **{k: v for k, v in changes.items() if k != "learner"},
        )
        logprobs.LOGITS_HELD = 5 * VOCABULARY if "chunks" in name else 2**26
        results[name] = two_updates(learner_of({"untied": folder, "tied": tied}[model], chosen), gradient_of)
    return results


SEVERAL = {"num_iterations": 2, "temperature": 0.7, "weight_decay": 0.1, "loss": {"name": "gspo", "beta": 0.05}}
VARIANTS = [
    *((f"gspo, two passes, KL, ZeRO-{stage}", stage, "untied", SEVERAL) for stage in (2, 3)),
    *(
        (f"tied head, layers recomputed, ZeRO-{stage}", stage, "tied", {"learner": {"gradient_checkpointing": True}})
        for stage in (2, 3)
    ),
    *((f"offload, ZeRO-{stage}", stage, "untied", {"learner": {"offload": True}}) for stage in (1, 2, 3)),
    ("logits in chunks of five tokens, ZeRO-3", 3, "untied", {}),
    ("bfloat16, ZeRO-2", 2, "untied", {"dtype": "bfloat16"}),
    ("bfloat16, ZeRO-3", 3, "untied", {"dtype": "bfloat16"}),
]


def life(folder: str, state: str, torch_state: str, stage: str) -> dict:
    """A learner's days, good and bad: what each leaves behind. `torch_state` was saved by a torch learner."""
    from longshort.backends.learners.deepspeed_learner import empty_batch

    learner = learner_of(folder, recipe(learner=settings_of(int(stage)), max_skipped_steps=3))
    seen = {"start": learner.weights(), "nothing": learner.update([sample_like(1, advantage=0.0)])}
    seen["one sample"] = learner.update(SAMPLES[:1])
    seen["gaps of one sample"] = learner.gaps()
    learner.update(SAMPLES[:1])
    learner.save(f"{state}/model", f"{state}/state")
    before = seen["saved"] = learner.weights()
    good = SAMPLES[0]
    for name, value in (("nan", math.nan), ("inf", math.inf)):
        bad = dataclasses.replace(good, advantages=tuple(value * m for m in good.mask))
        seen[name] = learner.update([*SAMPLES, bad]), learner.gaps(), same(learner.weights(), before)
    batch = dataclasses.replace(empty_batch(LONG, learner.device), mask=torch.tensor([[False, True]]))
    endless = learner.process.optimizer_step(
        learner.policy, learner.optimizer, [batch], lambda b: learner.policy(b, 1.0)[0].sum() + math.inf, 1
    )
    seen["infinite loss"] = endless, same(learner.weights(), before)
    seen["score"] = learner.score((3, 4), (5, 6), 0.7)
    seen["good"] = learner.update(SAMPLES)
    seen["good again"] = learner.update(SAMPLES)
    seen["end"] = learner.weights()
    resumed = learner_of(
        f"{state}/model", recipe(learner=settings_of(int(stage)), max_skipped_steps=3), reference_folder=folder
    )
    resumed.load(f"{state}/state")
    seen["loaded"] = resumed.weights()
    seen["good, resumed"], seen["good again, resumed"] = resumed.update(SAMPLES), resumed.update(SAMPLES)
    seen["end, resumed"] = resumed.weights()
    heir = learner_of(f"{torch_state}/model", recipe(learner=settings_of(int(stage))))
    heir.load(f"{torch_state}/state")
    heir.update(SAMPLES)
    seen["torch's, resumed"] = heir.weights()
    return seen


def parcels(folder: str, stage: str) -> dict:
    """What rank 0 packs for an engine after an update, CUDA's handles played by the buffer's bytes; then, what is
    refused and by whom.
    """

    weight_outbox.gpu_id, weight_outbox.BUFFER_BYTES = (lambda: "gpu"), 1024
    weight_outbox.reduce_tensor = lambda buffer: (None, (bytes(buffer.numpy()),))
    torch.cuda.current_stream = lambda: SimpleNamespace(synchronize=lambda: None)
    learner = learner_of(folder, recipe(learner=settings_of(int(stage)), dtype="bfloat16"))
    learner.update(SAMPLES)
    outbox = weight_outbox.Outbox(learner)
    seen = {"manifest": outbox.manifest(), "packed": [], "weights": learner.weights()}
    for _ in range(count_parcels(outbox)):
        seen["packed"].append(outbox.pack(1024))
    seen["after"] = outbox.pack(1024)
    if learner.process.rank:
        assert seen["packed"] == [{}] * len(seen["packed"]), "only rank 0 sends"
    part = next(learner.model.parameters())
    with torch.no_grad():
        getattr(part, "ds_tensor", part).view(-1)[-1] = math.nan  # of this rank's part
    try:
        outbox.manifest()
    except LongShortError as error:
        seen["refused"] = str(error)
    assert "refused" in seen, "every rank refuses"
    return seen


def count_parcels(outbox) -> int:

    sizes, count = outbox._sizes(), 0
    while sizes:
        sizes, count = sizes[parcel(sizes, 1024) :], count + 1
    return count


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def launch(ranks: int, function: str, *arguments: str, folder: Path, timeout: float = 280.0):
    """Run `function` on so many ranks; returns rank 0's result, or fails with what the ranks wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, "-m", "tests.support.deepspeed_ranks", str(folder)]
    running = []
    try:
        for rank in range(ranks):
            with (folder / f"rank-{rank}.log").open("w") as log:
                arguments_of = [*command, str(rank), str(ranks), function, *map(str, arguments)]
                running.append(subprocess.Popen(arguments_of, stdout=log, stderr=log, env=environment))
        statuses = [process.wait(timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    logs = "\n".join((folder / f"rank-{rank}.log").read_text()[-3000:] for rank in range(ranks))
    assert statuses == [0] * ranks, logs
    return torch.load(folder / "result.pt", weights_only=False)


def main() -> None:
    folder, rank, ranks, function, *arguments = sys.argv[1:]
    torch.set_num_threads(1)
    from longshort.backends.learners.deepspeed_learner import join

    join(torch.distributed.FileStore(f"{folder}/store", int(ranks)), int(rank), int(ranks), 60.0, gpu=False)
    result = globals()[function](*arguments)
    if rank == "0":
        torch.save(result, f"{folder}/result.pt")
    torch.distributed.destroy_process_group()


def save_models(folder: Path) -> dict[str, str]:
    """Save two tiny models, one of them with a tied head; return their folders."""
    return {"untied": save_tiny(folder / "untied"), "tied": save_tiny(folder / "tied", tied=True)}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Length of the difference over the length of what was expected, all tensors laid end to end."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([tensors[name].flatten().double() for name in expected]) for tensors in (found, expected))
    return ((a - b).norm() / b.norm()).item()


def assert_the_same(found: dict, expected: dict, tolerance: float) -> None:
    """Of two pairs of updates: gradient, weights, report and gaps."""
    assert distance(found["gradient"], expected["gradient"]) < tolerance
    assert distance(found["weights"], expected["weights"]) < tolerance
    assert found["report"] == pytest.approx(expected["report"], rel=20 * tolerance, abs=20 * tolerance)
    for gap, wanted in zip(found["gaps"], expected["gaps"], strict=True):
        assert gap == pytest.approx(wanted, abs=max(1.1e-4, 20 * tolerance))


if __name__ == "__main__":
    main()


def unpacked(parcels):
    """What a receiver makes of them."""
    tensors = {}
    for told in parcels:
        ((content,),) = told["ipc_handles"].values()
        at = 0
        for name, dtype, shape, size in zip(
            told["names"], told["dtype_names"], told["shapes"], told["tensor_sizes"], strict=True
        ):
            tensors[name] = torch.frombuffer(bytearray(content[at : at + size]), dtype=getattr(torch, dtype)).view(
                shape
            )
            at += size
    return tensors
