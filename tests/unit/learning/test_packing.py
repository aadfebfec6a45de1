"""Rows and micro-batches: what goes where, and that nothing is lost or seen by a neighbour."""

import pytest
import torch

from longshort.learning.logprobs import token_logprobs
from longshort.learning.packing import first_fit_decreasing, like_widths, pack
from longshort.types import LONG, SHORT, Sample
from tests.support.learning_cases import sample_like, tiny_model


def sample(*token_ids: int, role: str = LONG) -> Sample:
    """The first id is the prompt, the others are sampled."""
    mask = (0,) + (1,) * (len(token_ids) - 1)
    return Sample(
        role=role,
        token_ids=token_ids,
        mask=mask,
        logprobs=tuple(-0.5 * m for m in mask),
        advantages=tuple(2.0 * m for m in mask),
    )


def test_first_fit_decreasing():
    assert first_fit_decreasing([2, 5, 3, 4, 1], capacity=6) == [[1, 4], [3, 0], [2]]
    assert first_fit_decreasing([9, 2, 2], capacity=4) == [[0], [1, 2]]
    assert first_fit_decreasing([], capacity=4) == []


def test_a_packed_batch_read_by_eye():
    (batch,) = pack(
        [sample(11, 12), sample(21, 22, 23), sample(31, 32)], [0.1, 0.2, 0.3], row_tokens=5, batch_tokens=100
    )
    assert batch.input_ids.tolist() == [[21, 22, 23, 11, 12], [31, 32, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.sequence.tolist() == [[1, 1, 1, 0, 0], [2, 2, -1, -1, -1]]
    assert batch.mask.tolist() == [[False, True, True, False, True], [False, True, False, False, False]]
    assert batch.logprobs.tolist() == [[0, -0.5, -0.5, 0, -0.5], [0, -0.5, 0, 0, 0]]
    assert batch.advantages.tolist() == [[0, 2, 2, 0, 2], [0, 2, 0, 0, 0]]
    assert batch.weights[batch.mask].tolist() == pytest.approx([0.2, 0.2, 0.1, 0.3])


def test_padding_behind_several_samples_is_a_sequence_of_its_own():
    (batch,) = pack(
        [sample(11, 12), sample(*range(21, 26)), sample(31)], [0.1, 0.2, 0.3], row_tokens=4, batch_tokens=100
    )
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 0, 0, 0]]


def test_without_a_row_budget_each_sample_has_a_row_and_no_row_breaks_off():
    (batch,) = pack([sample(11, 12), sample(21, 22, 23)], [0.1, 0.2], row_tokens=0, batch_tokens=100)
    assert batch.input_ids.tolist() == [[21, 22, 23], [11, 12, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.sequence.tolist() == [[1, 1, 1], [0, 0, -1]]


def test_rows_of_like_width_share_a_batch():
    assert like_widths([400, 390, 350, 90], batch_tokens=8192) == [
        range(3),
        range(3, 4),
    ]  # 10 + 50 of padding, then 310 more
    assert like_widths([400, 400, 400], batch_tokens=800) == [range(2), range(2, 3)]
    assert like_widths([900, 10], batch_tokens=800) == [range(1), range(1, 2)]
    assert like_widths([], batch_tokens=800) == []


def test_budgets_hold_and_nothing_is_lost():
    samples = [sample_like(seed, prompt=2, sampled=1 + seed % 7) for seed in range(30)]
    batches = pack(samples, [1.0] * 30, row_tokens=12, batch_tokens=40)
    assert all(batch.input_ids.numel() <= 40 and batch.input_ids.shape[1] <= 12 for batch in batches)
    seen = {}
    for batch in batches:
        for number in batch.sequence.unique().tolist():
            seen[number] = tuple(batch.input_ids[batch.sequence == number].tolist())
    del seen[-1]
    assert seen == {i: s.token_ids for i, s in enumerate(samples)}


def test_a_long_sample_gets_a_row_of_its_own_length():
    batches = pack([sample(*range(10)), sample(1, 2)], [1.0, 1.0], row_tokens=4, batch_tokens=8)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 10), (1, 2)]


def test_two_roles_or_missing_weights_are_refused():
    with pytest.raises(ValueError, match="both"):
        pack([sample(1, 2), sample(1, 2, role=SHORT)], [1.0, 1.0], 8, 8)
    with pytest.raises(ValueError, match="2 samples but 1"):
        pack([sample(1, 2), sample(1, 2)], [1.0], 8, 8)


def test_packed_rows_give_the_log_probs_of_each_sample_alone():
    model = tiny_model()
    samples = [sample_like(seed, prompt=1 + seed % 3, sampled=2 + seed % 5) for seed in range(9)]
    alone = [token_logprobs(model, pack([s], [1.0], 0, 64)[0]) for s in samples]
    rows, stack = (
        pack(samples, [1.0] * 9, row_tokens=16, batch_tokens=64),
        pack(samples, [1.0] * 9, row_tokens=0, batch_tokens=64),
    )
    for batches in (rows, stack):
        assert any(len(batch.input_ids) > 1 for batch in batches) and any(
            (batch.sequence == -1).any() for batch in batches
        )
    for batch in (*rows, *stack):
        packed, sequence = token_logprobs(model, batch), batch.sequence[batch.mask]
        for number in sequence.unique().tolist():
            torch.testing.assert_close(packed[sequence == number], alone[number], rtol=0, atol=2e-6)
