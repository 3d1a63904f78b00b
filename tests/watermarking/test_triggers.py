"""Trigger sets: what is refused, and how wrong labels fall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dfke_jax.core import InputError
from dfke_jax.watermarking import TriggerSet, trigger_matches, trigger_set, wrong_labels

IMAGES = np.linspace(0, 1, 4 * 9, dtype=np.float32).reshape(4, 3, 3, 1)
LABELS = np.array([0, 1, 2, 1])


def test_a_trigger_set_keeps_its_numbers():
    triggers = trigger_set((IMAGES * 255).astype(np.uint8), LABELS, 3, truth=[1, 2, -1, 0])
    np.testing.assert_allclose(triggers.images, (IMAGES * 255).astype(np.uint8) / 255, rtol=1e-6)
    assert triggers.images.dtype == jnp.float32
    np.testing.assert_array_equal(triggers.labels, LABELS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES * 2}, "must lie in"),
        ({"images": IMAGES * np.nan}, "must lie in"),
        ({"images": IMAGES[..., 0]}, "T, H, W, C"),
        ({"labels": LABELS[:2]}, "4 triggers need as many"),
        ({"labels": LABELS * 1.0}, "integer labels, got float64"),
        ({"labels": LABELS + 1}, "classes are 0 to 2"),
        ({"truth": [1, 1, -1, 0]}, r"1 triggers carry their true label \(first: trigger 1\)"),
    ],
)
def test_bad_triggers_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        trigger_set(**{"images": IMAGES, "labels": LABELS, "num_classes": 3, "truth": None} | changes)


def test_wrong_labels_are_uniform_over_the_wrong():
    truth = np.repeat([0, 4, 9, -1], 5000)
    drawn = np.asarray(wrong_labels(jax.random.key(0), truth, 10))
    for label in (0, 4, 9):
        counts = np.bincount(drawn[truth == label], minlength=10)
        assert counts[label] == 0
        assert stats.chisquare(np.delete(counts, label)).pvalue > 1e-4
    assert stats.chisquare(np.bincount(drawn[truth == -1], minlength=10)).pvalue > 1e-4


def test_matches_are_counted_against_the_labels():
    triggers = TriggerSet(jnp.asarray(IMAGES), jnp.asarray(LABELS))
    answers = jnp.asarray([0, 1, 1, 1])
    found = trigger_matches(lambda x: jax.nn.one_hot(answers, 3), triggers)
    np.testing.assert_array_equal(found, [True, True, False, True])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.where(np.arange(36).reshape(IMAGES.shape) == 7, -0.01, IMAGES)}, "must lie in"),
        ({"images": np.where(np.arange(36).reshape(IMAGES.shape) == 7, 1.01, IMAGES)}, "must lie in"),
        ({"images": np.where(np.arange(36).reshape(IMAGES.shape) == 7, np.nan, IMAGES)}, "must lie in"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "triggers are images"),
        ({"labels": LABELS[:, None]}, "4 triggers need as many"),
        ({"labels": LABELS - 1}, "labels of triggers run from -1 to 1"),
        ({"labels": np.array([0, 1, 3, 1])}, "labels of triggers run from 0 to 3"),
    ],
)
def test_one_bad_value_among_good_ones_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        trigger_set(**{"images": IMAGES, "labels": LABELS, "num_classes": 3, "truth": None} | changes)


def test_two_classes_have_one_wrong_label():
    truth = jnp.array([0, 1] * 20)
    np.testing.assert_array_equal(wrong_labels(jax.random.key(1), truth, 2), 1 - truth)
