"""Agreement, spread and diversity against loops and closed forms."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import (
    accuracy,
    agreement,
    balanced_accuracy,
    class_accuracies,
    class_histogram,
    histogram_entropy,
    mean_pairwise_distance,
    summarise,
    total_variation,
    wilson_interval,
)

LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 5.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0]], np.float32)
OTHER = np.array([[2.0, 3.0, 0.0], [0.0, 1.0, 9.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)


def test_accuracy_by_class_and_balanced():
    """Against scikit-learn, where classes are unequal and one never occurs."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 3], [70, 20, 10])
    scores = rng.normal(size=(100, 4)) + 2 * np.eye(4)[labels]
    found = class_accuracies(scores, labels)
    predicted = scores.argmax(1)
    np.testing.assert_allclose(found[[0, 1, 3]], [(predicted[labels == k] == k).mean() for k in (0, 1, 3)])
    assert np.isnan(found[2])
    kept = predicted != 2  # scikit-learn counts a class that is only predicted among those that occur
    assert balanced_accuracy(predicted[kept], labels[kept]) == pytest.approx(
        metrics.balanced_accuracy_score(labels[kept], predicted[kept])
    )
    assert balanced_accuracy(np.zeros(100, int), labels) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match=r"classes must lie in \[0, 3\)"):
        class_accuracies(predicted, labels, 3)


def test_accuracy_and_agreement():
    assert accuracy(LOGITS, [0, 2, 1, 1]) == 0.75
    assert accuracy(jnp.asarray(LOGITS), jnp.array([0, 2, 1, 1])) == 0.75
    assert accuracy([0, 2, 1, 0], [0, 2, 1, 1]) == 0.75
    assert agreement(LOGITS, OTHER) == 0.5
    assert agreement(LOGITS, OTHER.argmax(-1)) == 0.5
    assert agreement(LOGITS, 3 * LOGITS + 7) == 1.0


def test_total_variation():
    expected = []
    for a, b in zip(LOGITS.tolist(), OTHER.tolist(), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, row)) for x in row] for row in (a, b))
        expected.append(sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2)
    assert total_variation(LOGITS, OTHER) == pytest.approx(np.mean(expected), rel=1e-12)
    assert total_variation(LOGITS, LOGITS + 100) == pytest.approx(0, abs=1e-6)
    assert total_variation([[1e5, 0.0]], [[0.0, 1e5]]) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy(LOGITS, [0, 1]), "4 and 2 samples"),
        (lambda: accuracy(LOGITS, [0, 1, 2, 3]), r"\[0, 3\)"),
        (lambda: accuracy(LOGITS, [0.0, 1, 2, 2]), "integers"),
        (lambda: accuracy(LOGITS * np.nan, [0, 1, 2, 2]), "NaN or infinity in 4 rows"),
        (lambda: accuracy(np.zeros((0, 3)), []), "predictions must be"),
        (lambda: accuracy(LOGITS[None], [0]), "predictions must be"),
        (lambda: agreement(LOGITS, OTHER[:, :2]), "differ in shape"),
        (lambda: agreement(LOGITS, [0, 1]), "4 and 2 samples"),
        (lambda: total_variation(LOGITS, OTHER[:2]), "differ in shape"),
        (lambda: total_variation(LOGITS[0], LOGITS[0]), r"\(N, K\)"),
        (lambda: summarise([]), "no values"),
        (lambda: summarise([1.0, math.nan]), "finite"),
        (lambda: wilson_interval(3, 2), r"\[0, n\]"),
        (lambda: wilson_interval(0, 0), r"\[0, n\]"),
        (lambda: wilson_interval(1, 2, 1.0), "confidence"),
        (lambda: class_histogram([0, 3], 3), r"\[0, 3\)"),
        (lambda: class_histogram([], 3), "not empty"),
        (lambda: histogram_entropy([0, 0]), "not all zero"),
        (lambda: histogram_entropy([1, -1, 3]), "not negative"),
        (lambda: histogram_entropy([4], normalised=True), "one class"),
        (lambda: mean_pairwise_distance(np.zeros((1, 2, 2, 1))), "two images"),
        (lambda: mean_pairwise_distance(np.zeros((4, 2, 2))), r"\(N, H, W, C\)"),
        (lambda: mean_pairwise_distance(np.full((4, 2, 2, 1), np.nan)), "NaN"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_summarise():
    summary = summarise(np.array([1.0, 2.0, 4.0], np.float32))
    assert summary == {
        "values": [1, 2, 4],
        "mean": pytest.approx(7 / 3),
        "std": pytest.approx(7**0.5 / 3**0.5),
        "n": 3,
    }
    assert summarise([0.5]) == {"values": [0.5], "mean": 0.5, "std": None, "n": 1}
    assert json.loads(json.dumps(summary)) == summary


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
@pytest.mark.parametrize(("successes", "n"), [(0, 1), (0, 20), (1, 20), (13, 20), (20, 20), (9_871, 10_000)])
def test_wilson_interval_solves_the_score_equation(successes, n, confidence):
    """Its ends are the rates p at which |p̂ − p| = z √(p(1 − p)/n), or the ends of [0, 1]."""
    z, (low, high) = stats.norm.ppf((1 + confidence) / 2), wilson_interval(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    for end, given in ((low, successes == 0), (high, successes == n)):
        if given:
            assert end == successes / n
        else:
            assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-12)


def test_wilson_interval_covers_the_rate_as_often_as_it_says():
    rate, n = 0.9, 200
    inside = np.zeros(n + 1)
    for successes in range(n + 1):
        low, high = wilson_interval(successes, n, 0.95)
        inside[successes] = low <= rate <= high
    coverage = float(inside @ stats.binom.pmf(np.arange(n + 1), n, rate))
    assert coverage == pytest.approx(0.95, abs=0.02)


def test_class_histogram_and_its_entropy():
    counts = class_histogram([0, 2, 2, 2], 4)
    np.testing.assert_array_equal(counts, [1, 0, 3, 0])
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert histogram_entropy(counts) == pytest.approx(expected)
    assert histogram_entropy(counts, normalised=True) == pytest.approx(expected / math.log(4))
    assert histogram_entropy([7, 7, 7]) == pytest.approx(math.log(3))
    assert histogram_entropy([7, 7, 7], normalised=True) == pytest.approx(1)
    assert histogram_entropy([5, 0]) == 0


def test_mean_pairwise_distance():
    images = np.random.default_rng(0).uniform(size=(7, 3, 2, 2)).astype(np.float32)
    lengths = [math.sqrt(((images[i].astype(float) - images[j]) ** 2).sum()) for i in range(7) for j in range(i + 1, 7)]
    assert mean_pairwise_distance(images) == pytest.approx(np.mean(lengths), rel=1e-6)
    assert mean_pairwise_distance(images, sample=2, seed=1) in [pytest.approx(length, rel=1e-6) for length in lengths]
    assert mean_pairwise_distance(images, 3, seed=1) == mean_pairwise_distance(images, 3, seed=1)
    coarse = np.round(images * 255).astype(np.uint8)
    assert mean_pairwise_distance(coarse) == pytest.approx(np.mean(lengths), rel=1e-2)
    assert mean_pairwise_distance(np.ones((4, 2, 2, 1))) == 0
