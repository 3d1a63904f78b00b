"""Claims of ownership: tails against enumeration and SciPy, levels against simulation."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from dfke_jax.core import InputError
from dfke_jax.watermarking import claim_power, floored_rate, ownership_test, queries_needed


def tail(n, p, c):
    """P(Bin(n, p) ≥ c) in rational numbers."""
    p = Fraction(p)
    return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(c, n + 1))


@pytest.mark.parametrize(("n", "p_null", "p_marked", "alpha"), [(20, 0.1, 0.4, 0.05), (7, 0.3, 0.9, 0.01), (50, 0.02, 0.03, 0.05)])  # fmt: skip
def test_power_against_enumeration(n, p_null, p_marked, alpha):
    critical = next(c for c in range(n + 2) if tail(n, p_null, c) <= alpha)
    assert claim_power(n, p_null, p_marked, alpha) == pytest.approx(float(tail(n, p_marked, critical)), abs=1e-12)


def test_the_number_of_queries_is_the_least_that_keeps_its_power():
    needed = queries_needed(0.1, 0.4, 0.05, 0.9)
    assert needed is not None
    assert all(claim_power(n, 0.1, 0.4) >= 0.9 for n in range(needed, needed + 200))
    assert claim_power(needed - 1, 0.1, 0.4) < 0.9
    assert queries_needed(0.1, 0.1, most=300) is None
    assert queries_needed(0.2, 0.1, most=300) is None
    assert queries_needed(0.01, 1.0) == 1  # one match is rarer than 5%
    assert queries_needed(0.1, 1.0) == 2
    assert queries_needed(0.1, 0.11, 0.05, 0.9) > 5000
    assert queries_needed(0.1, 1.0, 1e-6) == 6  # 0.1⁶ is not above 10⁻⁶, whatever rounding says


@pytest.mark.parametrize(("p_null", "p_marked", "alpha", "power"), [(0.1, 0.5, 0.05, 0.9), (0.25, 0.75, 0.01, 0.8), (0.1, 1.0, 2e-3, 0.9)])  # fmt: skip
def test_the_number_of_queries_against_a_search_in_rational_numbers(p_null, p_marked, alpha, power):
    lacking = []
    for count in range(1, 61):
        critical = next((c for c in range(count + 1) if tail(count, p_null, c) <= alpha), None)
        if critical is None or tail(count, p_marked, critical) < power:
            lacking.append(count)
    assert queries_needed(p_null, p_marked, alpha, power) == max(lacking) + 1 < 50


def test_the_larger_of_rank_and_fishers_test_decides():
    null = [0, 3, 1, 2] * 5
    found = ownership_test(9, 20, null)
    table = [[9, 11], [30, 370]]
    assert found.p_values["fisher"] == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)
    assert found.p_value == found.p_values["rank"] == 1 / 21
    assert found.claimed
    assert (found.success, found.false_rate) == (0.45, 0.075)
    weak = ownership_test(4, 20, null)
    assert weak.p_value == weak.p_values["fisher"] > weak.p_values["rank"]
    assert not ownership_test(3, 20, null).claimed
    assert ownership_test(0, 20, null).p_value == 1
    assert ownership_test(9, 20, null[:19]).claimed, "the rank may reach the level exactly"


def test_clean_networks_are_claimed_no_more_often_than_stated():
    """Triggers of a network fall together: every network has a rate of its own, 19 beside the suspect."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.3, 2.7, (4000, 20))
    counts = rng.binomial(40, rates)
    found = [ownership_test(int(row[0]), 40, row[1:]) for row in counts]
    level = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
    assert np.mean([one.claimed for one in found]) < level
    assert np.mean([one.p_values["fisher"] <= 0.05 for one in found]) > 3 * level, "the pooled test does not keep it"


def test_a_rate_is_not_smaller_than_one_could_have_seen():
    assert floored_rate(0, 99) == 0.01
    assert floored_rate(99, 99) == 1


def test_bad_counts_and_levels_are_refused():
    for matches, queries, null in ((5, 4, 0), (-1, 4, 0), (1, 4, 5), (1, 0, 0), (1, 4, 0.5)):
        with pytest.raises(InputError, match="matches of the"):
            ownership_test(matches, queries, [0] * 18 + [null])
    with pytest.raises(InputError, match="alpha"):
        ownership_test(1, 4, [0] * 19, alpha=0)
    with pytest.raises(InputError, match=r"18 cannot give p <= 0\.05, need at least 19"):
        ownership_test(1, 4, [0] * 18)
    with pytest.raises(InputError, match="one count for each"):
        ownership_test(1, 4, 3)
    with pytest.raises(InputError, match="p_marked"):
        claim_power(10, 0.1, 1.5)
    with pytest.raises(InputError, match="queries"):
        claim_power(0, 0.1, 0.5)
    with pytest.raises(InputError, match="power must lie"):
        queries_needed(0.1, 0.5, 0.05, 1.0)
