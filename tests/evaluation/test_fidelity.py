"""Fidelity, its intervals, and what victims share among themselves."""

import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import (
    bootstrap_interval,
    class_fidelity,
    extraction_errors,
    fidelity,
    self_fidelity,
    wilson_interval,
)

RNG = np.random.default_rng(0)
VICTIM = RNG.normal(size=(200, 4))
CLONE = VICTIM + 0.8 * RNG.normal(size=(200, 4))
LABELS = np.where(RNG.random(200) < 0.9, VICTIM.argmax(1), RNG.integers(0, 4, 200))


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_every_number_by_hand():
    made = fidelity(VICTIM, CLONE, LABELS)
    agreed = (VICTIM.argmax(1) == CLONE.argmax(1)).sum()
    right = (CLONE.argmax(1) == LABELS).sum()
    distances = np.abs(softmax(VICTIM) - softmax(CLONE)).sum(1) / 2
    assert made["fidelity"] == pytest.approx(agreed / 200)
    assert made["fidelity_interval"] == wilson_interval(int(agreed), 200)
    assert made["accuracy"] == pytest.approx(right / 200)
    assert made["accuracy_interval"] == wilson_interval(int(right), 200)
    assert made["victim_accuracy"] == pytest.approx((VICTIM.argmax(1) == LABELS).mean())
    assert made["total_variation"] == pytest.approx(distances.mean())
    half = 1.96 * distances.std(ddof=1) / np.sqrt(200)
    low, high = made["total_variation_interval"]
    np.testing.assert_allclose([low, high], [distances.mean() - half, distances.mean() + half], atol=0.15 * half)


def test_labels_alone_leave_out_what_needs_scores():
    made = fidelity(VICTIM.argmax(1), CLONE)
    assert set(made) == {"fidelity", "fidelity_interval"}
    assert made["fidelity"] == fidelity(VICTIM, CLONE)["fidelity"]


def test_a_copy_is_faithful_and_the_interval_says_how_sure():
    made = fidelity(VICTIM, VICTIM)
    assert (made["fidelity"], made["total_variation"]) == (1, 0)
    assert made["fidelity_interval"][0] == pytest.approx(1 / (1 + 1.959964**2 / 200), rel=1e-6)
    assert made["total_variation_interval"] == (0, 0)


def test_classes_are_the_victims():
    victim, clone = np.array([0, 0, 0, 2, 2]), np.array([0, 1, 0, 2, 0])
    np.testing.assert_allclose(class_fidelity(victim, clone, 3), [2 / 3, np.nan, 1 / 2])
    scores = np.eye(3)[victim]
    np.testing.assert_allclose(class_fidelity(scores, clone), [2 / 3, np.nan, 1 / 2])
    by_class = class_fidelity(VICTIM, CLONE)
    weights = np.bincount(VICTIM.argmax(1), minlength=4) / 200
    assert by_class @ weights == pytest.approx(fidelity(VICTIM, CLONE)["fidelity"])


def test_self_fidelity_is_over_all_pairs():
    victims = [np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0]), np.array([1, 1, 0, 0])]
    made = self_fidelity(victims)
    assert made["values"] == [0.75, 0.5, 0.75]
    assert (made["mean"], made["low"], made["high"]) == (pytest.approx(2 / 3), 0.5, 0.75)
    assert "total_variation" not in made
    scores = self_fidelity([VICTIM, CLONE])
    assert scores["total_variation"] == pytest.approx(fidelity(VICTIM, CLONE)["total_variation"])


@pytest.mark.slow
def test_bootstrap_covers_as_often_as_it_says():
    """400 samples of 60 exponential values; the percentile interval of a skewed mean covers slightly too rarely."""
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(400):
        low, high = bootstrap_interval(rng.exponential(size=60), 0.9, resamples=300, seed=trial)
        hits += low <= 1 <= high
    assert 0.83 < hits / 400 < 0.94
    assert bootstrap_interval([3.0]) == (3, 3)


def test_what_cannot_be_compared():
    with pytest.raises(InputError, match="differ in shape"):
        fidelity(VICTIM, CLONE[:, :3])
    with pytest.raises(InputError, match="num_classes is needed"):
        class_fidelity(np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(InputError, match=r"lie in \[0, 2\)"):
        class_fidelity(np.array([0, 2]), np.array([0, 1]), 2)
    with pytest.raises(InputError, match="at least two victims, got 1"):
        self_fidelity([VICTIM])
    with pytest.raises(InputError, match="finite"):
        bootstrap_interval([1.0, np.nan])
    with pytest.raises(InputError, match="confidence"):
        bootstrap_interval([1.0, 2.0], 1.0)


def test_errors_of_extraction_are_those_of_the_paper():
    victim, clone = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]]), np.array([[0.7, 0.3], [0.6, 0.4], [0.5, 0.5]])
    rows = np.arange(3)[:, None]
    found = extraction_errors(
        lambda at: victim[at[:, 0]], lambda at: clone[at[:, 0]], rows, rows[:1], price=0.5, queries=4000
    )
    expected = {"r_test": 1 / 3, "tv_test": 0.4 / 3, "r_uniform": 0, "tv_uniform": 0.2, "tv_largest": 0.2, "cost": 2.0}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value), name
    labels = extraction_errors(lambda at: np.arange(len(at)), lambda at: victim[: len(at)], rows, rows[:2])
    assert labels == {"r_test": 1 / 3, "r_uniform": 0}  # ties fall to the first class
    numbers = extraction_errors(
        lambda at: at * 1.0, lambda at: at[:, 0] + np.array([0, 1e-9, 1e-3])[: len(at)], rows, rows[:2]
    )
    assert numbers == {"r_test": 1 / 3, "r_uniform": 0}
    with pytest.raises(InputError, match="price and queries"):
        extraction_errors(len, len, rows, rows, price=1.0)
    with pytest.raises(InputError, match="answers of shape"):
        extraction_errors(lambda at: victim[:2], lambda at: clone[:2], rows, rows)
