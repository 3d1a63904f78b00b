"""Tests behind ownership claims: against SciPy, closed forms and simulation."""

import numpy as np
import pytest
from scipy import stats

from dfke_jax.core import InputError
from dfke_jax.watermarking import (
    binomial_evidence,
    cosine_p_value,
    false_claim_probability,
    fisher,
    measured_rate,
    mismatch_threshold,
    random_label_evidence,
    rank_p_value,
    ranked_evidence,
)
from dfke_jax.watermarking.evidence import answered


@pytest.mark.parametrize(("s", "n", "q"), [(0, 10, 0.1), (16, 100, 0.1), (100, 100, 0.1), (3, 7, 0.5), (1, 1, 0.0), (5, 5, 1.0)])  # fmt: skip
def test_binomial_tail_is_scipys(s, n, q):
    found = binomial_evidence(s, n, q)
    np.testing.assert_allclose(found.p_value, stats.binom.sf(s - 1, n, q), rtol=1e-9)
    assert found.rate == s / n


def test_counts_that_are_needed_for_100_triggers_of_10_classes():
    for level, least in ((0.05, 16), (0.01, 19), (1e-6, 28)):
        assert binomial_evidence(least, 100, 0.1).p_value <= level < binomial_evidence(least - 1, 100, 0.1).p_value


def test_drawn_labels_are_an_exact_test_of_any_innocent_network():
    """Innocent answers are mostly right and otherwise one class; the p-value made continuous is uniform."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 80)
    answers = np.where(rng.random(80) < 0.6, truth, 3)
    uniform, small = [], 0
    for _ in range(2000):
        labels = (truth + 1 + rng.integers(0, 4, 80)) % 5
        found = random_label_evidence(answers, labels, truth, 5)
        more = stats.binom.sf(found.successes, found.trials, 0.25)
        uniform.append(more + rng.random() * (found.p_value - more))
        small += found.p_value < 0.05
    assert found.trials == (answers != truth).sum() > 20
    assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    assert small <= 2000 * 0.05 + 3 * np.sqrt(2000 * 0.05)


def test_measured_rate_and_rank_are_counts():
    assert measured_rate([0, 3, 1], 10) == 5 / 31
    assert measured_rate([0], 10) == 1 / 11
    assert rank_p_value(2.0, [1.0, 2.0, 3.0]) == 3 / 4
    assert rank_p_value(4.0, [1.0, 2.0, 3.0]) == 1 / 4


def test_the_larger_of_rank_and_binomial():
    null = [0, 3, 1]
    strong, weak = ranked_evidence(9, null, 10), ranked_evidence(3, null, 10)
    assert strong.p_values == {"rank": 1 / 4, "binomial": pytest.approx(stats.binom.sf(8, 10, 5 / 31), rel=1e-9)}
    assert strong.p_value == 1 / 4
    assert weak.p_value == max(weak.p_values.values()) == weak.p_values["rank"] == 2 / 4
    assert ranked_evidence(2, [0] * 99, 3).p_value == ranked_evidence(2, [0] * 99, 3).p_values["rank"] == 0.01

    near = ranked_evidence(6, [5] * 99, 50)
    assert near.p_values["rank"] == 0.01 < near.p_values["binomial"] == near.p_value
    assert (strong.rate, strong.models, strong.most) == (0.9, 3, 3)


def test_a_pooled_rate_accuses_too_often_and_the_larger_of_both_does_not():
    """Every network has a rate of its own: triggers of one kind fall into one class together."""
    rng = np.random.default_rng(0)
    counts = rng.binomial(50, rng.beta(0.3, 2.7, (3000, 100)))
    found = [ranked_evidence(int(row[0]), row[1:], 50) for row in counts]
    for level in (0.01, 0.05):
        most = level + 3 * np.sqrt(level * (1 - level) / 3000)
        assert np.mean([one.p_value <= level for one in found]) < most
        assert np.mean([one.p_values["binomial"] <= level for one in found]) > 2 * most


def test_fisher_is_scipys():
    values = [0.2, 0.01, 0.9, 0.5]
    np.testing.assert_allclose(fisher(values), stats.combine_pvalues(values).pvalue, rtol=1e-9)
    assert 0 <= fisher([0.0, 0.3]) < 1e-200


@pytest.mark.parametrize("dimension", [2, 3, 10, 84])
def test_cosine_tail_against_closed_forms_and_students_t(dimension):
    t = np.array([-1.0, -0.4, 0.0, 0.1, 0.5, 0.9, 1.0])
    found = cosine_p_value(t, dimension)
    inside = np.abs(t) < 1
    student = stats.t.sf(t[inside] * np.sqrt((dimension - 1) / (1 - t[inside] ** 2)), dimension - 1)
    np.testing.assert_allclose(found[inside], student, rtol=1e-9)
    np.testing.assert_allclose(found[[0, -1]], [1, 0], atol=1e-12)
    if dimension == 3:  # the third coordinate of a point on the sphere is uniform
        np.testing.assert_allclose(found, (1 - t) / 2, atol=1e-12)


def test_cosine_tail_against_simulation():
    u = np.random.default_rng(1).normal(size=(200_000, 6))
    cosines = u[:, 0] / np.linalg.norm(u, axis=1)
    for t in (0.0, 0.3, 0.7):
        p = cosine_p_value(t, 6)
        assert abs((cosines >= t).mean() - p) < 4 * np.sqrt(p / 200_000)


@pytest.mark.parametrize(("size", "classes", "threshold"), [(1, 2, 0.5), (10, 10, 0.5), (250, 10, 0.5), (30, 100, 0.1)])
def test_false_claim_probability_is_the_sum(size, classes, threshold):
    share = (classes - 1) / classes
    terms = [stats.binom.pmf(i, size, share) for i in range(size + 1) if i * 1000 <= round(threshold * 1000) * size]
    np.testing.assert_allclose(false_claim_probability(size, classes, threshold), sum(terms), rtol=1e-8)


def test_mismatch_threshold_is_the_largest():
    assert mismatch_threshold(100) == 42
    for size in (5, 20, 41):
        found = mismatch_threshold(size)
        assert stats.binom.cdf(found - 1, size, 0.5) < 0.05 <= stats.binom.cdf(found, size, 0.5)
    with pytest.raises(InputError, match="4 keys cannot show anything"):
        mismatch_threshold(4)


IMAGES = np.zeros((3, 2, 2, 1), np.float32)


def test_suspects_answer_scores_or_labels():
    scores = np.array([[0, 1, 0], [3, 1, 0], [0, 0, 2]])
    np.testing.assert_array_equal(answered(lambda x: scores, IMAGES), [1, 0, 2])
    np.testing.assert_array_equal(answered(lambda x: np.array([1, 0, 2], np.int32), IMAGES, 3), [1, 0, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binomial_evidence(5, 4, 0.5), "successes must be whole"),
        (lambda: binomial_evidence(1, 4, 1.5), "null_rate"),
        (lambda: random_label_evidence([1], [1], [1], 3), "1 labels are the truth"),
        (lambda: random_label_evidence([1], [1], [0], 2), "at least 3"),
        (lambda: random_label_evidence([1, 2], [1], [0], 3), "must all be"),
        (lambda: measured_rate([], 3), "at least one independent model"),
        (lambda: measured_rate([4], 3), "at least one independent model"),
        (lambda: rank_p_value(np.nan, [1.0]), "must be finite"),
        (lambda: fisher([0.1, 1.2]), "p-values must be"),
        (lambda: cosine_p_value(1.5, 4), "cosines in"),
        (lambda: false_claim_probability(0, 10), "size >= 1"),
        (lambda: answered(lambda x: np.zeros((2, 3)), IMAGES), "answers 3 images"),
        (lambda: answered(lambda x: np.full((3, 3), np.nan), IMAGES), "NaN"),
        (lambda: answered(lambda x: np.array([0, 1, 3]), IMAGES, 3), "run from 0 to 3"),
        (lambda: answered(lambda x: np.zeros(3), IMAGES), "must be integers"),
    ],
)
def test_bad_numbers_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_no_trials_are_no_evidence():
    found = binomial_evidence(0, 0, 0.3)
    assert (found.p_value, found.rate) == (1.0, 0.0)


def test_the_ends_of_what_is_accepted():
    assert random_label_evidence([1], [1], [0], 3).p_value == 0.5, "three classes leave two to draw from"
    assert measured_rate([3], 3) == 1.0
    assert measured_rate([0, 1], 1) == 2 / 3
    assert rank_p_value(1.0, [1.0]) == 1.0
    assert rank_p_value(-1.0, [-2.0, -1.0, 0.0, 5.0]) == 4 / 5
    assert fisher([1.0]) == 1.0
    np.testing.assert_allclose(fisher([0.25]), 0.25)
    np.testing.assert_array_equal(answered(lambda x: np.array([0, 1, 2]), IMAGES, 3), [0, 1, 2])
    np.testing.assert_array_equal(answered(lambda x: np.array([-1, 1, 7]), IMAGES), [-1, 1, 7])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: binomial_evidence(0, -1, 0.5), "successes must be whole"),
        (lambda: binomial_evidence(-1, 4, 0.5), "successes must be whole"),
        (lambda: binomial_evidence(1.5, 4, 0.5), "successes must be whole"),
        (lambda: binomial_evidence(1, 4.5, 0.5), "successes must be whole"),
        (lambda: binomial_evidence(1, 4, -0.1), "null_rate"),
        (lambda: random_label_evidence([1, 0], [1, 2], [0, 2], 3), "1 labels are the truth"),
        (lambda: random_label_evidence([1], [1, 2], [0, 0], 3), "must all be"),
        (lambda: random_label_evidence([1, 1], [1, 2], [0], 3), "must all be"),
        (lambda: random_label_evidence([[1]], [[1]], [[0]], 3), "must all be"),
        (lambda: measured_rate([0], 0), "at least one independent model"),
        (lambda: measured_rate([1, -1], 3), "at least one independent model"),
        (lambda: measured_rate([1, 4], 3), "at least one independent model"),
        (lambda: measured_rate([[1]], 3), "at least one independent model"),
        (lambda: rank_p_value(1.0, []), "must be finite"),
        (lambda: rank_p_value(1.0, [[1.0]]), "must be finite"),
        (lambda: rank_p_value(1.0, [1.0, np.nan]), "must be finite"),
        (lambda: fisher([]), "p-values must be"),
        (lambda: fisher([[0.5]]), "p-values must be"),
        (lambda: fisher([0.1, -0.2]), "p-values must be"),
        (lambda: answered(lambda x: np.zeros((3, 3, 3)), IMAGES), "answers 3 images"),
        (lambda: answered(lambda x: np.zeros(2, int), IMAGES), "answers 3 images"),
        (lambda: answered(lambda x: np.array([[0, np.nan], [0, 1], [1, 0]]), IMAGES), "NaN"),
        (lambda: answered(lambda x: np.array([-1, 0, 2]), IMAGES, 3), "run from -1 to 2"),
    ],
)
def test_one_bad_number_among_good_ones_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
