"""How fast is the learner beside TRL's GRPOTrainer on the same ids, rewards and masks?

Both train the same model from the same weights: float32, one thread, AdamW, loss `dapo`, beta 0, no importance
correction, one optimizer step per batch. The log-probs of the old policy are the forward pass's own on both sides
(TRL: generation and update are aligned), so each makes one forward and one backward pass over every token, and counts
the entropy beside it. TRL gets prompts, completions, `env_mask` (the partner's text) and rewards through its
`rollout_func`. It makes advantages, pads every sequence of the step to the longest prompt and the longest completion,
and cuts micro-batches. We make advantages and samples from the same episodes and lay them out as `pack` does. Neither
recomputes layers. A step of TRL and a step of ours take turns in one process; each is timed from the episodes to the
new weights (TRL without its log line). Seconds are the processor's: neither side waits for anything, and the clock
would also count what else the machine does. The gradients of the first step are compared, in float32, before either
optimizer has moved.

The padding bound is TRL's padded tokens over the real ones: what there is to gain if every token costs the same
wherever it lies. It is no bound on attention, which costs less in narrower rows.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

import torch

from longshort.learning.advantages import advantages
from longshort.learning.loop import training_samples
from longshort.learning.step import micro_batches
from longshort.miniature.models import build_model, save
from longshort.miniature.tokenizer import build_tokenizer
from longshort.recipe.miniature import ModelShape
from longshort.recipe.schema import LongShortConfig
from longshort.types import LONG, SHORT, Completion, Episode, Group, Problem, Reward, Sample, Turn
from tests.benchmarks.common import Figure, leave, options, say, spread

SHAPE = ModelShape(
    hidden_size=256,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=704,
    base_steps=1,
    base_learning_rate=1e-3,
)
"""4.8M parameters, nearly all of them in layers: the head over the miniature's few hundred words is cheap on both
sides.
"""
PROBLEMS, GENERATIONS = 5, 8
LEARNING_RATE = 1e-4
MICRO_BATCH = 5
"""Sequences in TRL's micro-batch."""


def turn(role: str, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> Turn:
    completion = Completion(token_ids=token_ids, logprobs=(-1.0,) * len(token_ids), text="", stop="</think>", version=0)
    return Turn(role=role, prompt_ids=prompt_ids, completion=completion)


def make_groups(vocabulary: int, seed: int = 0) -> list[Group]:
    """Episodes of one to three thoughts of the long model with the partner's words in between; turn lengths are
    log-normal.
    """
    rng = random.Random(seed)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(16, vocabulary) for _ in range(count))

    def length(median: float) -> int:
        return max(4, min(round(rng.lognormvariate(0, 0.7) * median), 320))

    groups = []
    for number in range(PROBLEMS):
        problem, question, episodes, rewards = (
            Problem(id=str(number), question="", answer=""),
            ids(rng.randint(20, 60)),
            [],
            [],
        )
        for _ in range(GENERATIONS):
            text, turns = question, []
            for exchange in range(rng.choice((1, 1, 2, 3))):
                text += ids(length(20)) if exchange else ()  # what the partner answered
                turns.append(turn(LONG, text, ids(length(60))))
                text += turns[-1].completion.token_ids
            episodes.append(Episode(problem=problem, turns=tuple(turns), stop="answered"))
            total = float(rng.random() < 0.5)
            rewards.append(Reward(totals={LONG: total, SHORT: total}, terms={}))
        groups.append(Group(problem=problem, episodes=tuple(episodes), rewards=tuple(rewards)))
    return groups


def samples_of(groups: list[Group]) -> list[Sample]:
    return training_samples(groups, LONG, lambda groups, role: advantages(groups, role, "team", "group"))


def rollouts_of(groups: list[Group]) -> dict[str, list]:
    """The same as TRL's `rollout_func` returns them."""
    columns = {"prompt_ids": [], "completion_ids": [], "logprobs": [], "env_mask": [], "outcome": []}
    rewards = [reward.totals[LONG] for group in groups for reward in group.rewards]
    episodes = [episode for group in groups for episode in group.episodes]
    for sample, episode, reward in zip(samples_of(groups), episodes, rewards, strict=True):
        start = len(episode.turns[0].prompt_ids)
        columns["prompt_ids"].append(list(sample.token_ids[:start]))
        columns["completion_ids"].append(list(sample.token_ids[start:]))
        columns["logprobs"].append(list(sample.logprobs[start:]))
        columns["env_mask"].append(list(sample.mask[start:]))
        columns["outcome"].append(reward)
    return columns


def make_trainer(folder: Path, rollouts: dict[str, list], steps: int, callback):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # `rollout_func` may change, it says
    count = len(rollouts["prompt_ids"])
    arguments = GRPOConfig(
        output_dir=str(folder.parent / "trl"),
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=count // MICRO_BATCH,
        num_generations=GENERATIONS,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        loss_type="dapo",
        beta=0.0,
        epsilon_high=0.28,
        max_grad_norm=1e9,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        reward_funcs=lambda outcome, **_: outcome,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(PROBLEMS)]}),
        processing_class=tokenizer,
        rollout_func=lambda prompts, trainer: rollouts,
        callbacks=[callback],
    )


class Duel:
    """Our learner and TRL's trainer, one step each in turn: processor seconds and clock seconds by side, and the
    first gradients.
    """

    def __init__(self, folder: Path, groups: list[Group], steps: int):
        from longshort.backends.learners.torch_learner import TorchLearner

        self.groups, self.samples, rollouts = groups, samples_of(groups), rollouts_of(groups)
        self.cpu: dict[str, list[float]] = {"TRL": [], "ours": []}
        self.clock: dict[str, list[float]] = {"TRL": [], "ours": []}
        self.gradients: dict[str, torch.Tensor] = {}
        self.width = sum(max(map(len, rollouts[name])) for name in ("prompt_ids", "completion_ids"))
        self.real = sum(len(sample.token_ids) for sample in self.samples)
        config = LongShortConfig(
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            max_grad_norm=1e9,
            loss={"name": "dapo", "importance_correction": "none"},
        )
        self.learner = TorchLearner.from_pretrained(LONG, folder, config, steps)
        self.learner.optimizer.register_step_pre_hook(lambda *_: self.keep_first("ours", self.learner.model))
        self.trainer = make_trainer(folder, rollouts, steps, self.callback())

    def callback(self):
        """TRL's step is timed from inside its training loop, and ours follows each."""
        from transformers import TrainerCallback

        duel = self

        class Turns(TrainerCallback):
            def on_step_begin(self, *_, **__):
                duel.began = time.process_time(), time.perf_counter()

            def on_pre_optimizer_step(self, *_, model, **__):
                duel.keep_first("TRL", model)

            def on_step_end(self, *_, **__):
                duel.done("TRL")
                duel.began = time.process_time(), time.perf_counter()
                duel.learner.update(samples_of(duel.groups))
                duel.done("ours")

        return Turns()

    def done(self, side: str) -> None:
        self.cpu[side].append(time.process_time() - self.began[0])
        self.clock[side].append(time.perf_counter() - self.began[1])
        say(
            f"  step {len(self.cpu[side])}, {side}: {self.cpu[side][-1]:.2f} s of the processor, "
            f"{self.clock[side][-1]:.2f} s"
        )

    def keep_first(self, side: str, model) -> None:
        if side not in self.gradients:
            named = dict(model.named_parameters())
            self.gradients[side] = torch.cat([named[name].grad.flatten() for name in sorted(named)])

    def bound(self) -> float:
        """TRL's padded tokens over the real ones."""
        return len(self.samples) * self.width / self.real

    def laid_out(self) -> int:
        """Tokens of our micro-batches, padding included."""
        return sum(
            batch.input_ids.numel() for batch in micro_batches(self.samples, self.learner.settings, self.learner.device)
        )

    def difference(self) -> float:
        ours, theirs = self.gradients["ours"], self.gradients["TRL"]
        return ((ours - theirs).norm() / theirs.norm()).item()


def report(duel: Duel) -> tuple[list[Figure], list[str]]:
    """Figures and notes; the first step of both is warm-up."""
    cpu, clock = ({side: values[1:] for side, values in times.items()} for times in (duel.cpu, duel.clock))
    ratios = tuple(theirs / ours for theirs, ours in zip(cpu["TRL"], cpu["ours"], strict=True))
    bound = duel.bound()
    figures = [
        Figure(
            what="learner, tokens per second, of TRL's GRPOTrainer's",
            values=ratios,
            ideal=(bound,),
            limit="padding bound: TRL's padded tokens over real ones",
            form="{:.2f} x",
        ),
        Figure(
            what="the same, of the padding bound",
            values=tuple(ratio / bound for ratio in ratios),
            ideal=(1.0,),
            limit="all of the padding bound",
            at_least=0.9,
            cause=f"Our micro-batches hold {duel.laid_out() / duel.real:.2f} tokens for each real one.",
        ),
        Figure(
            what="relative difference of the two gradients",
            values=(duel.difference(),),
            ideal=(0.0,),
            limit="the same gradient",
            at_most=1e-4,
            form="{:.1e}",
            cause="The two do not compute the same: the speeds above cannot be compared.",
        ),
    ]
    rates = {side: spread([duel.real / value for value in values], "{:.0f}") for side, values in cpu.items()}
    notes = [
        f"{len(duel.samples)} sequences of {duel.real} real tokens; TRL pads them to {len(duel.samples) * duel.width}, "
        f"{MICRO_BATCH} sequences of {duel.width} at a time; ours are laid out in {duel.laid_out()}",
        f"real tokens per processor second: TRL {rates['TRL']}, ours {rates['ours']}",
        "by the clock: "
        + spread([theirs / ours for theirs, ours in zip(clock["TRL"], clock["ours"], strict=True)], "{:.2f} x")
        + " of TRL's tokens per second",
    ]
    return figures, notes


def main() -> None:
    asked = options(__doc__)
    torch.set_num_threads(1)
    tokenizer = build_tokenizer(LONG)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        save(build_model(tokenizer, SHAPE, seed=0, max_position_embeddings=2048), tokenizer, folder)
        duel = Duel(folder, make_groups(len(tokenizer)), asked.runs + 1)
        duel.trainer.train()
    figures, notes = report(duel)
    leave("learner_trl", __doc__, figures, asked.results, notes)


if __name__ == "__main__":
    main()
