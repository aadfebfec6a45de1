"""Advantages against numbers worked out by hand."""

import pytest

from longshort.learning.advantages import advantages, zero_variance
from longshort.types import LONG, SHORT, Episode, Group, LongShortError, Problem, Reward

PROBLEM = Problem(id="p", question="?", answer="1")
EPISODE = Episode(problem=PROBLEM, turns=(), stop="answered")


def group(*totals: tuple[float, float]) -> Group:
    """Totals of (long, short) per episode."""
    rewards = tuple(Reward(totals={LONG: a, SHORT: b}, terms={}) for a, b in totals)
    return Group(problem=PROBLEM, episodes=(EPISODE,) * len(totals), rewards=rewards)


MIXED, FLAT = group((1, 3), (0, 0), (2, 2), (0, 0)), group((1, 1), (1, 1))


def test_team_normalises_the_mean_of_both_totals():
    # Scores 2, 0, 2, 0: mean 1, sample std sqrt(4/3) = 1.154701
    for role in (LONG, SHORT):
        assert advantages([MIXED], role, "team", "group")[0] == pytest.approx(
            [0.86595, -0.86595, 0.86595, -0.86595], abs=1e-5
        )


def test_role_normalises_the_roles_own_total():
    # Long's totals 1, 0, 2, 0: mean 0.75, sample std sqrt(2.75/3) = 0.957427; short's 3, 0, 2, 0: mean 1.25, std 1.5
    assert advantages([MIXED], LONG, "role", "group")[0] == pytest.approx(
        [0.26109, -0.78327, 1.30545, -0.78327], abs=1e-5
    )
    assert advantages([MIXED], SHORT, "role", "group")[0] == pytest.approx(
        [1.16659, -0.83328, 0.49997, -0.83328], abs=1e-5
    )


def test_batch_scale_divides_by_the_std_of_all_scores():
    # Scores 2, 0, 2, 0, 1, 1: sample std sqrt(4/5) = 0.894427; each group keeps its own mean
    mixed, flat = advantages([MIXED, FLAT], LONG, "team", "batch")
    assert mixed == pytest.approx([1.11791, -1.11791, 1.11791, -1.11791], abs=1e-5)
    assert flat == [0.0, 0.0]


def test_no_scale_only_centres():
    assert advantages([MIXED, group((0, 0), (4, 2))], LONG, "team", "none") == [[1.0, -1.0, 1.0, -1.0], [-1.5, 1.5]]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_zero_variance_trains_nothing(scale):
    nearly = group((0.1 + 0.2, 0.3), (0.3, 0.1 + 0.2), (0.3, 0.3))  # equal but for the last bits
    assert advantages([FLAT, nearly], LONG, "team", scale) == [[0.0, 0.0], [0.0, 0.0, 0.0]]
    assert zero_variance(FLAT, LONG) and zero_variance(nearly, LONG) and not zero_variance(MIXED, LONG)


def test_zero_variance_depends_on_the_kind():
    traded = group((1, 0), (0, 1))
    assert zero_variance(traded, LONG, "team") and not zero_variance(traded, LONG, "role")


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(LongShortError, match=r"'gae'.*team, role"):
        advantages([MIXED], LONG, "gae", "group")


def test_no_groups_no_advantages():
    assert advantages([], LONG, "team", "batch") == []
