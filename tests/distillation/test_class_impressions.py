"""Class impressions raise the logit of their class and stop at a confidence of their own."""

import jax
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.distillation import ClassImpressionSettings, class_impressions

KEY = jax.random.key(9)
STILL = {"rotation": 0.0, "scaling": (1.0, 1.0), "shift": 0.0}


def of_class(teacher, pool):
    logits = teacher.predict(pool.images)
    rows, labels = np.arange(len(logits)), np.asarray(pool.labels)
    return logits[rows, labels], np.asarray(jax.nn.softmax(logits))[rows, labels]


@pytest.mark.parametrize("moves", [True, False])
def test_the_logit_of_the_class_rises(teacher, moves):
    settings = ClassImpressionSettings(steps=25, confidence=(1.0, 1.0), **({} if moves else STILL))
    made = core.run(class_impressions(teacher, settings, 12, 6), KEY, 2)
    control = core.run(class_impressions(teacher, settings, 12, 6, control=True), KEY, 2).state
    np.testing.assert_array_equal(made.state.labels, np.arange(12) % 3)
    assert (of_class(teacher, made.state)[0] > of_class(teacher, control)[0] + 0.1).all()
    assert made.state.images.min() >= 0
    assert made.state.images.max() <= 1


def test_samples_stop_at_their_threshold(teacher):
    low, high = 0.5, 0.6
    settings = ClassImpressionSettings(steps=150, confidence=(low, high), learning_rate=0.001, **STILL)
    made = core.run(class_impressions(teacher, settings, 12, 12), KEY, 1)
    start = core.run(class_impressions(teacher, settings, 12, 12, control=True), KEY, 1).state
    before, after = of_class(teacher, start)[1], of_class(teacher, made.state)[1]
    ready = before >= high
    assert 0 < ready.sum() < 12
    np.testing.assert_array_equal(made.state.images[ready], start.images[ready])
    reached = after >= low
    assert made.metrics["reached"][0] == pytest.approx(np.mean(after >= low), abs=1 / 12 + 1e-6)
    assert 0 < made.metrics["updates"][0] < 150
    climbed = ~ready & reached
    assert climbed.any()
    assert (after[climbed] < high + 0.02).all(), "a small step takes it hardly past the threshold"


def test_reached_counts_samples_that_ever_got_there(teacher):
    """Random transformations between the steps do not wake up a sample that has stopped."""
    settings = ClassImpressionSettings(steps=120, confidence=(0.6, 0.9), rotation=0.5, shift=2.0)
    made = core.run(class_impressions(teacher, settings, 12, 12), KEY, 1)
    assert made.metrics["reached"][0] == 1
    assert made.metrics["updates"][0] < 100


def test_the_control_is_the_start_of_the_run_with_the_same_key(teacher):
    settings = ClassImpressionSettings(steps=1, learning_rate=1e-9)
    made = core.run(class_impressions(teacher, settings, 6, 3), KEY, 2).state
    control = core.run(class_impressions(teacher, settings, 6, 3, control=True), KEY, 2).state
    np.testing.assert_allclose(made.images, control.images, atol=1e-6)
    np.testing.assert_array_equal(made.labels, control.labels)


@pytest.mark.parametrize("confidence", [(0.0, 0.5), (0.9, 0.5), (0.5, 1.5)])
def test_confidence_is_checked(confidence):
    with pytest.raises(core.InputError, match="confidence must be"):
        ClassImpressionSettings(confidence=confidence)


def test_steps_are_checked():
    with pytest.raises(core.InputError, match="at least one step, got 0"):
        ClassImpressionSettings(steps=0)
