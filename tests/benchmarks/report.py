"""Size of the report with thousands of episodes, and how long a browser takes for it.

    python -m tests.benchmarks.report [EPISODES] [TOKENS]

EPISODES (default 5000) synthetic dialogues of four messages with about TOKENS (default 40) sampled tokens, in groups
of 8 over 40 steps, with context ids, log-probs and gaps, as training writes them. Printed: the page's size and the
seconds to write it; in Chromium the seconds until the first dialogue is shown, and until the first search through all
messages and the first token view are done.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from shutil import which

from longshort.dialogue.protocols import LongShort, demonstration
from longshort.miniature.tokenizer import build_tokenizer
from longshort.report.report_page import write_report
from longshort.runs.episodes import episode_row
from longshort.types import LONG, ROLES, SHORT, Problem
from tests.support.browser import Browser

SHAPE = ((LONG, "</think>"), (SHORT, "</rethink>"), (LONG, "</think>"), (SHORT, "</answer>"))
STEPS, GROUP = 40, 8
WAIT = "new Promise(done => { const look = () => %s ? done(performance.now()) : setTimeout(look, 4); look(); })"
SEARCH = (
    "(q => { q.value = 'said by nobody'; q.dispatchEvent(new Event('input', {bubbles: true})) })"
    "(document.querySelector('[name=q]'))"
)
FIRSTS = (
    ("search", SEARCH, "document.getElementById('matching').textContent === '0'"),
    (
        "token view",
        "document.querySelectorAll('.views button')[1].click()",
        "document.querySelector('.tokens .token')",
    ),
)


def write_run(folder: Path, episodes: int, tokens: int) -> None:
    """Messages of random digits and signs, each one token of both tokenizers."""
    rng, tokenizers = random.Random(0), {role: build_tokenizer(role) for role in ROLES}
    protocol = LongShort(turn_tokens=dict.fromkeys(ROLES, 10**6), episode_tokens=10**6, tags="special")
    (folder / "episodes").mkdir(parents=True)
    for role, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(folder / "checkpoint-40" / role)
    for number in range(episodes):
        step, group = number * STEPS // episodes + 1, number // GROUP
        problem = Problem(id=f"p-{group % 97}", question=f"Last digit of {group % 97}**{group}?", answer="7")
        said = [
            (role, "".join(rng.choices("0123456789+-*=", k=tokens // len(SHAPE) - 1)), stop) for role, stop in SHAPE
        ]
        row = episode_row(demonstration(problem, said, protocol, tokenizers))
        for turn in row["turns"]:  # log-probs like a trained model's: most near 0, some far from it
            turn["logprobs"] = [
                round(-rng.expovariate(1.0) * rng.choice((0.001, 0.01, 1.0)), 4) for _ in turn["token_ids"]
            ]
        gaps = {
            r: [round(rng.gauss(0, 0.02), 4) for turn in row["turns"] if turn["role"] == r for _ in turn["token_ids"]]
            for r in ROLES
        }
        rewards = dict.fromkeys(ROLES, round(2 * rng.random(), 3))
        scored = {
            "terms": {"correct": float(rng.random() < 0.7)},
            "reward": rewards,
            "advantages": rewards,
            "gaps": gaps,
        }
        with (folder / "episodes" / f"step-{step:06d}.jsonl").open("a") as stream:
            stream.write(json.dumps({"step": step} | row | scored) + "\n")


def measure(folder: Path, browser: Browser) -> None:
    began, page = time.perf_counter(), write_report([folder])
    print(f"written in {time.perf_counter() - began:.1f} s: {page.stat().st_size / 1e6:.1f} MB")
    browser.open(page.as_uri())
    print("first dialogue after {:.2f} s".format(browser.js(WAIT % "document.querySelector('.turn')") / 1000))
    for name, act, done in FIRSTS:
        began = browser.js(f"{{ const began = performance.now(); {act}; began }}")
        print(f"first {name}: {(browser.js(WAIT % done) - began) / 1000:.2f} s")


if __name__ == "__main__":
    asked = [int(word) for word in sys.argv[1:]]
    with tempfile.TemporaryDirectory(
        ignore_cleanup_errors=True
    ) as scratch:  # the browser may still be writing its profile
        write_run(Path(scratch) / "run", *(asked + [5000, 40][len(asked) :]))
        measure(Path(scratch) / "run", chromium := Browser(which("chromium"), Path(scratch) / "profile"))
        chromium("Browser.close")
