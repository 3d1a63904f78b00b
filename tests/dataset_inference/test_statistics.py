"""Each statistic against SciPy, an enumeration, or a simulation of what it promises."""

import itertools

import numpy as np
import pytest
from scipy import integrate, special, stats

from dfke_jax.core import InputError
from dfke_jax.dataset_inference import (
    calibrate,
    conformal_p_value,
    holm,
    p_value_curve,
    permutation_test,
    released_harmonic_mean,
    twice_the_median,
    welch_test,
)

RNG = np.random.default_rng(9)
PRIVATE, PUBLIC = RNG.normal(0, 1, 30), RNG.normal(0.5, 2, 40)


def student_tail(t, freedom):
    """P(T ≥ t), by integrating the density."""
    scale = np.exp(special.gammaln((freedom + 1) / 2) - special.gammaln(freedom / 2)) / np.sqrt(freedom * np.pi)
    return scale * integrate.quad(lambda x: (1 + x * x / freedom) ** (-(freedom + 1) / 2), t, np.inf, epsabs=1e-14)[0]


def test_welch_in_closed_form():
    found = welch_test(PRIVATE, PUBLIC, 0.9)
    effect, shares = PUBLIC.mean() - PRIVATE.mean(), np.array([PRIVATE.var(ddof=1) / 30, PUBLIC.var(ddof=1) / 40])
    error = np.sqrt(shares.sum())
    assert found.effect == pytest.approx(effect)
    assert found.statistic == pytest.approx(effect / error)
    assert found.freedom == pytest.approx(shares.sum() ** 2 / (shares**2 / [29, 39]).sum())
    assert found.p_value == pytest.approx(student_tail(found.statistic, found.freedom), rel=1e-9)
    half = (found.interval[1] - found.interval[0]) / 2
    assert student_tail(half / error, found.freedom) == pytest.approx(0.05)
    assert sum(found.interval) / 2 == pytest.approx(effect)
    assert found.standardised == pytest.approx(found.effect / np.sqrt((PRIVATE.var(ddof=1) + PUBLIC.var(ddof=1)) / 2))
    assert found.samples == (30, 40)


def test_direction():
    low, high = RNG.normal(0, 1, 50), RNG.normal(3, 1, 50)
    assert welch_test(low, high).p_value < 1e-10
    assert welch_test(high, low).p_value > 1 - 1e-10
    assert permutation_test(low, high) == pytest.approx(1e-4)
    assert permutation_test(high, low) == 1


def test_permutation_equals_an_enumeration():
    private, public = np.array([0.1, 0.4, 0.35, 0.9]), np.array([0.5, 0.8, 1.1, 0.3])
    values = np.concatenate([private, public])
    sums = [values[list(chosen)].sum() for chosen in itertools.combinations(range(8), 4)]
    exact = np.mean(np.array(sums) >= public.sum() - 1e-12)
    # 70 relabellings are all there are: all are taken
    assert permutation_test(private, public, 40_000) == pytest.approx(exact)
    assert permutation_test(private, public, 60) == pytest.approx(exact, abs=4 * np.sqrt(exact / 60))
    assert permutation_test(private, public, 60) * 61 == pytest.approx(
        round(permutation_test(private, public, 60) * 61)
    )


def test_equal_relabellings_are_ties():
    """Scores of two values: every relabelling has the value of many others, whatever the order of their sums."""
    private, public = np.repeat([0.1, 0.3], [12, 8]), np.repeat([0.1, 0.3], [10, 10])
    exact = stats.hypergeom.sf(9, 40, 18, 20)
    for studentised in (False, True):
        found = permutation_test(private - 0.7, public - 0.7, 20_000, studentised=studentised)
        assert found == pytest.approx(exact, abs=4 * np.sqrt(exact / 20_000))
        assert permutation_test(np.full(20, 0.3), np.full(30, 0.3), studentised=studentised) == 1
        assert permutation_test(np.full(20, -1.0), np.full(30, 1.0), 999, studentised=studentised) == 1 / 1000


def test_the_permutation_test_is_of_equal_distributions_not_of_equal_means():
    """Equal means, a spread ten times as large on the smaller side: Δμ accuses a quarter, t comes near its level."""
    rng, found = np.random.default_rng(10), []
    for _ in range(300):
        private, public = rng.normal(0, 0.3, 200), rng.normal(0, 3, 40)
        found.append([permutation_test(private, public, 99, studentised=on) <= 0.05 for on in (False, True)])
    plain, studentised = np.mean(found, 0)
    assert plain > 0.15
    assert studentised < 0.1


def test_holm_is_closed_testing_by_bonferroni():
    p = np.array([0.01, 0.04, 0.02, 0.5, 0.02])
    subsets = [s for size in range(1, 6) for s in itertools.combinations(range(5), size)]
    expected = [max(min(1, len(s) * p[list(s)].min()) for s in subsets if i in s) for i in range(5)]
    np.testing.assert_allclose(holm(p), expected)
    np.testing.assert_allclose(holm([0.03]), [0.03])


@pytest.mark.parametrize("test", ["welch", "permutation"])
def test_false_positive_rates_are_nominal(test):
    rng, trials = np.random.default_rng(4), 600
    function = {
        "welch": lambda a, b: welch_test(a, b).p_value,
        "permutation": lambda a, b: permutation_test(a, b, 199),
    }[test]
    p_values = [function(rng.normal(size=20), rng.normal(size=20)) for _ in range(trials)]
    low, high = stats.binom.ppf((0.001, 0.999), trials, 0.05) / trials
    assert low <= np.mean(np.array(p_values) <= 0.05) <= high


def test_conformal_counts_and_is_valid():
    null = np.arange(20.0)
    assert conformal_p_value(25, null) == 1 / 21
    assert conformal_p_value(19, null) == 2 / 21
    assert conformal_p_value(-1, null) == 1
    rng, trials = np.random.default_rng(5), 2000
    found = [conformal_p_value(draw[0], draw[1:]) for draw in rng.standard_cauchy((trials, 40))]
    for alpha in (0.05, 0.2):
        assert np.mean(np.array(found) <= alpha) <= alpha + 4 * np.sqrt(alpha / trials)
    with pytest.raises(InputError, match=r"19 independent models give no p-value below 0\.050; at least 20"):
        conformal_p_value(1.0, null[:19])
    with pytest.raises(InputError, match="must be finite"):
        conformal_p_value(np.nan, null)


def test_calibration_takes_out_shared_difficulty():
    """The chance difference of two fixed sets accuses innocent models together; the references know of it."""
    rng = np.random.default_rng(6)
    difficulty = rng.normal(size=(2, 60))
    difficulty += np.array([[0.0], [0.5]]) - difficulty.mean(1, keepdims=True)  # public samples happen to score higher
    draws = difficulty[None] + 0.3 * rng.normal(size=(205, 2, 60))
    suspects, references = draws[:200], draws[200:]
    plain = np.mean([welch_test(*suspect).p_value < 0.05 for suspect in suspects])
    calibrated = np.mean([welch_test(*calibrate(suspect, references)).p_value < 0.05 for suspect in suspects])
    assert plain > 0.8
    assert calibrated < 0.25  # five references leave a little of it
    np.testing.assert_allclose(calibrate(suspects[0], references), suspects[0] - references.mean(0))


def test_curve():
    rng = np.random.default_rng(7)
    private, public = rng.normal(0, 1, 200), rng.normal(0.6, 1, 200)
    curve = p_value_curve(private, public, [5, 20, 80, 200], draws=100)
    assert list(curve.samples) == [5, 20, 80, 200]
    assert (np.diff(curve.median) < 0).all()
    assert (np.diff(curve.power) >= 0).all()
    assert (curve.low <= curve.median).all()
    assert (curve.median <= curve.high).all()
    whole = welch_test(private, public).p_value
    assert curve.median[-1] == pytest.approx(whole), "with all samples there is one choice"
    assert curve.low[-1] == pytest.approx(curve.high[-1])
    # power at m = 20 as for fresh samples
    expected = np.mean([welch_test(rng.normal(0, 1, 20), rng.normal(0.6, 1, 20)).p_value < 0.05 for _ in range(400)])
    assert curve.power[1] == pytest.approx(expected, abs=0.2)
    assert p_value_curve(private, public).samples[-1] == 200


@pytest.mark.parametrize("size", [1.0, 1e6])
@pytest.mark.parametrize("gap", [2.0, 0.0, -2.0])
def test_curve_of_scores_without_variance_shows_no_evidence(size, gap):
    """Equal means or not, and where what varies is the last bit of large scores: as the test of all of them says."""
    rounding = size * 1e-15 * np.random.default_rng(0).integers(0, 2, (2, 10))
    private, public = size + rounding[0], size * (1 + gap) + rounding[1]
    with pytest.raises(InputError, match="no variance on either side"):
        welch_test(private, public)
    curve = p_value_curve(private, public, [2, 10])
    assert (curve.median == 1).all()
    assert (curve.low == 1).all()


def test_combinations():
    p = np.array([0.01, 0.04, 0.5])
    assert twice_the_median(p) == 0.08
    assert twice_the_median([0.9, 0.8]) == 1
    assert released_harmonic_mean(p) == pytest.approx(3 / (100 + 25 + 2))


def test_the_harmonic_mean_is_no_p_value_and_twice_the_median_is():
    """Null, a pool of 500 images, 100 draws of 10 + 10: the harmonic mean is below 0.1 far too often."""
    rng, trials = np.random.default_rng(8), 200
    harmonic, median = [], []
    for _ in range(trials):
        pool = rng.normal(size=(2, 500))
        chosen = rng.permuted(np.tile(np.arange(500), (2, 100, 1)), axis=2)[:, :, :10]
        p = stats.ttest_ind(
            pool[1][chosen[1]], pool[0][chosen[0]], axis=1, equal_var=False, alternative="greater"
        ).pvalue
        harmonic.append(released_harmonic_mean(p))
        median.append(twice_the_median(p))
    assert np.mean(np.array(harmonic) < 0.1) > 0.15
    assert np.mean(np.array(median) < 0.1) <= 0.1


def test_inputs_are_checked():
    with pytest.raises(InputError, match="two scores on each side, got 1 and 40"):
        welch_test(PRIVATE[:1], PUBLIC)
    with pytest.raises(InputError, match="no variance on either side"):
        welch_test(-np.ones(5), np.ones(5))
    with pytest.raises(InputError, match="private scores contain NaN"):
        welch_test([np.nan, 1.0], PUBLIC)
    with pytest.raises(InputError, match="confidence"):
        welch_test(PRIVATE, PUBLIC, 1.0)
    with pytest.raises(InputError, match="10 permutations cannot give"):
        permutation_test(PRIVATE, PUBLIC, 10)
    with pytest.raises(InputError, match="two scores on each side, got 1 and 40"):
        permutation_test(PRIVATE[:1], PUBLIC, studentised=True)
    with pytest.raises(InputError, match=r"references must be \(M, \*\(30,\)\)"):
        calibrate(PRIVATE, PRIVATE)
    with pytest.raises(InputError, match=r"sizes must lie in \[2, 30\]"):
        p_value_curve(PRIVATE, PUBLIC, [31])
    with pytest.raises(InputError, match="draws must be at least 1"):
        p_value_curve(PRIVATE, PUBLIC, [3], draws=0)
    with pytest.raises(InputError, match=r"p-values must lie in \[0, 1\]"):
        twice_the_median([1.2])
    with pytest.raises(InputError, match=r"with m >= 1, got shape \(0,\)"):
        permutation_test([], PUBLIC)
