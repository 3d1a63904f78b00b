"""Claims of ownership: exact tails against enumeration and against simulation."""

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


def test_the_test_is_fishers():
    found = ownership_test(9, 20, 30, 400)
    table = [[9, 11], [30, 370]]
    assert found.p_value == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)
    assert found.claimed
    assert (found.success, found.false_rate) == (0.45, 0.075)
    assert not ownership_test(2, 20, 30, 400).claimed
    assert ownership_test(0, 20, 30, 400).p_value == 1


def test_clean_networks_are_claimed_no_more_often_than_stated():
    """Also where the measured rate is zero most of the time, which a binomial test against it would not survive."""
    rng = np.random.default_rng(0)
    for rate in (0.005, 0.1):
        suspects, nulls = rng.binomial(40, rate, 4000), rng.binomial(100, rate, 4000)
        claims = stats.hypergeom.sf(suspects - 1, 140, suspects + nulls, 40) <= 0.05
        assert claims.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 4000)
        first = ownership_test(int(suspects[0]), 40, int(nulls[0]), 100)
        assert first.claimed == claims[0]


def test_a_rate_is_not_smaller_than_one_could_have_seen():
    assert floored_rate(0, 99) == 0.01
    assert floored_rate(99, 99) == 1


def test_bad_counts_and_levels_are_refused():
    for arguments in ((5, 4, 0, 10), (-1, 4, 0, 10), (1, 4, 11, 10), (1, 0, 0, 10), (1, 4, 0.5, 10)):
        with pytest.raises(InputError, match="matches of the"):
            ownership_test(*arguments)
    with pytest.raises(InputError, match="alpha"):
        ownership_test(1, 4, 0, 10, alpha=0)
    with pytest.raises(InputError, match="p_marked"):
        claim_power(10, 0.1, 1.5)
    with pytest.raises(InputError, match="queries"):
        claim_power(0, 0.1, 0.5)
    with pytest.raises(InputError, match="power must lie"):
        queries_needed(0.1, 0.5, 0.05, 1.0)
