"""The benchmarks' own arithmetic: figures, exponents, the ideal cache, the barrier, and the page."""

import asyncio
import platform

import pytest

from longshort.dialogue.rollout import Decoding, run_episode
from longshort.types import LONG, ROLES, SHORT, Completion, Problem
from tests.benchmarks import performance, prefix_cache, turns
from tests.benchmarks.common import Figure, figure_of, leave, slope, spread
from tests.benchmarks.scripted import Scripted, draw_lengths


def test_a_figure_is_its_median_and_meets_its_target_or_not():
    slow = Figure(what="x", values=(1.4, 1.2, 1.6), at_least=1.5, form="{:.1f} x")
    assert (slow.measured, slow.target, slow.met) == ("1.4 x (1.2 x to 1.6 x)", "≥ 1.5 x", False)
    assert (
        Figure(what="x", values=(0.04,), at_most=0.05, form="{:.0%}").met
        and not Figure(what="x", values=(0.06,), at_most=0.05).met
    )
    assert Figure(what="x", values=(9.0,)).met and Figure(what="x", values=(9.0,)).target == ""
    assert spread([2.0]) == "2.00"


def test_the_exponent_of_a_power_is_its_own():
    assert slope([1, 2, 4, 8], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2)
    assert slope([1, 2, 4], [5.0, 5.0, 5.0]) == pytest.approx(0)


def test_the_page_says_what_was_missed_and_why(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(platform, "processor", lambda: "x86_64")  # it would start a process
    missed = Figure(
        what="speed",
        values=(1.0, 2.0, 3.0),
        ideal=(4.0,),
        limit="light",
        at_least=2.5,
        form="{:.1f} x",
        cause="Gravity.",
    )
    met = Figure(what="weight", values=(3.0,), at_most=5.0, form="{:.0f} kg")
    leave("turns", "How fast.", [missed, met], tmp_path, ["Seen on the way."])
    rows, absent = performance.read(tmp_path)
    assert (
        [figure_of(one) for one in rows[0]["figures"]] == [missed, met] and "memory" in absent and "turns" not in absent
    )
    page = performance.page(rows, absent)
    assert "| speed | 2.0 x (1.0 x to 3.0 x) | ≥ 2.5 x: **missed** | 4.0 x: light | [turns](#turns) |" in page
    assert "| weight | 3 kg | ≤ 5 kg: met | – | [turns](#turns) |" in page
    assert "- Seen on the way.\n- **Missed**: speed, 2.0 x (1.0 x to 3.0 x), wanted ≥ 2.5 x. Gravity.\n" in page
    assert "Not measured: prefix_cache" in page and "`python -m tests.benchmarks.turns`, 3 runs" in page
    assert "speed: 2.0 x (1.0 x to 3.0 x) (wanted ≥ 2.5 x: MISSED); ideal 4.0 x: light" in capsys.readouterr().out


class Says:
    """Answers with the given ids, one tuple after the other."""

    tokenizer, context = None, 99

    def __init__(self, *ids):
        self.ids = list(ids)

    async def generate(self, prompt_ids, sampling):
        ids = self.ids.pop(0)
        return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text="", stop="length", version=0)


def test_the_ideal_cache_finds_whole_blocks_that_were_read():
    """Blocks of 4. The last sampled token was not read yet, the last token of a prompt is always read."""

    async def ideal(*exchanges):
        cache = prefix_cache.Cache(Says(*(said for _, said in exchanges)), 4)
        found = []
        for prompt, _ in exchanges:
            await cache.generate(prompt, None)
            found.append(cache.ideal - sum(found))
        return found

    one, two = (1, 2, 3, 4, 5), (6, 7, 8)
    assert asyncio.run(ideal((one, two), (one + two + (9,), (9,)), (one + two + (9, 9), (9,)))) == [0, 4, 8]
    assert asyncio.run(ideal((one, two), ((0,) + one, two), (one, two))) == [0, 0, 4], (
        "what begins otherwise is not the same"
    )
    first, second, new = ((1, 1, 1, 1), (2, 2, 2, 2)), ((3, 3, 3, 3), (4, 4, 4, 4)), (5,)
    mixed = ((*first[0], *first[1], 5), new), ((*second[0], *second[1], 5), new), ((*first[0], *second[1], 5), new)
    assert asyncio.run(ideal(*mixed)) == [0, 0, 4], "a block is the same only behind the same blocks"
    assert asyncio.run(ideal(((1, 2, 3, 4), two), ((1, 2, 3, 4), two))) == [0, 0], "its last token is read again"


def test_in_lock_step_nobody_begins_a_turn_before_all_have_ended_theirs():
    begun = []

    class Tokenizer:
        chat_template, bos_token_id = "", None

        def encode(self, *_, **__):
            return [1]

        def get_added_vocab(self):
            return dict.fromkeys(("<think>", "</think>", "<answer>", "</answer>", "</rethink>"), 5)

    class Slow(Says):
        def __init__(self, role):
            self.role, self.tokenizer = role, Tokenizer()

        async def generate(self, prompt_ids, sampling):
            begun.append((self.role, sampling.max_tokens))
            await asyncio.sleep(sampling.max_tokens / 1000)
            ids = (7,) * sampling.max_tokens
            return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text="7", stop="length", version=0)

    async def go():
        policies, asked = (
            {role: Slow(role) for role in ROLES},
            [Problem(id=str(i), question="?", answer="") for i in range(2)],
        )
        episodes = await turns.lock_step(policies, asked, [(1, 2, 3, 4), (40, 5, 6, 7)], 0)
        return [episode.stop for episode in episodes]

    assert asyncio.run(go()) == ["answered"] * 2
    assert [role for role, _ in begun] == [LONG, LONG, SHORT, SHORT] * 2
    assert [set(begun[i : i + 2]) for i in (0, 2, 4, 6)] == [
        {(LONG, 1), (LONG, 40)}, {(SHORT, 2), (SHORT, 5)}, {(LONG, 3), (LONG, 6)}, {(SHORT, 4), (SHORT, 7)},
    ]  # fmt: skip


def test_a_script_ends_each_turn_at_its_length_and_the_last_one_answers():
    from longshort.miniature.tokenizer import build_tokenizer

    class Digits:
        context = 10**6

        def __init__(self, role):
            self.tokenizer = build_tokenizer(role)

        async def generate(self, prompt_ids, sampling):
            ids = tuple(self.tokenizer.encode("7" * sampling.max_tokens, add_special_tokens=False))
            return Completion(token_ids=ids, logprobs=(0.0,) * len(ids), text="7" * len(ids), stop="length", version=0)

    policies, problem = {role: Digits(role) for role in ROLES}, Problem(id="p", question="1+1?", answer="2")
    episode = asyncio.run(run_episode(problem, policies, Scripted((3, 1, 2, 4)), Decoding(), 0))
    assert [(turn.role, len(turn.completion.token_ids), turn.completion.stop) for turn in episode.turns] == [
        (LONG, 3, "</think>"), (SHORT, 1, "</rethink>"), (LONG, 2, "</think>"), (SHORT, 4, "</answer>"),
    ]  # fmt: skip
    assert episode.stop == "answered"
    lengths = draw_lengths(9, 2, 3, 5, seed=1)
    assert lengths == draw_lengths(9, 2, 3, 5, seed=1) != draw_lengths(9, 2, 3, 5, seed=2)
    assert {len(row) for row in lengths} == {4} and {tokens for row in lengths for tokens in row} == {3, 4, 5}
