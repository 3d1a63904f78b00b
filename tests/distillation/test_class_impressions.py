"""Class impressions raise the logit of their class and stop at a confidence of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.data.augment import affine
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
    rises = of_class(teacher, made.state)[0] > of_class(teacher, control)[0] + 0.1
    assert rises.mean() > 0.9 if moves else rises.all(), "what chance gave a start, a rotation can take from it"
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


@pytest.mark.parametrize("moves", [True, False])
def test_every_kept_image_has_the_confidence_that_stopped_it(teacher, moves):
    settings = ClassImpressionSettings(steps=150, confidence=(0.6, 0.95), **({"rotation": 0.5} if moves else STILL))
    made = core.run(class_impressions(teacher, settings, 24, 24), KEY, 1)
    assert made.metrics["reached"][0] == 1
    stop_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)[1]
    threshold = np.asarray(jax.random.uniform(stop_key, (24,), minval=0.6, maxval=0.95))
    assert (of_class(teacher, made.state)[1] >= threshold - 1e-6).all()


def written_out(numpy, settings, x, threshold, move_key):
    """The published loop, sample by sample, in NumPy: measure, stop or update, and only then turn the image."""
    count, labels = len(x), np.arange(len(x)) % 3
    first, second = np.zeros((2, *x.shape))
    active, updates, measured, logit = np.ones(count, bool), np.zeros(count), np.zeros(count), np.zeros(count)
    turn = affine(settings.rotation, settings.scaling, settings.shift)
    for step in range(settings.steps):
        logits = numpy.logits(x)
        softmax, slope = numpy.softmax(logits), numpy.back(x, -np.eye(3)[labels])
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        adam = first / (1 - 0.9 ** (step + 1)) / (np.sqrt(second / (1 - 0.999 ** (step + 1))) + 1e-8)
        moved = np.clip(x - settings.learning_rate * adam, -0.25, 1.5)
        if step < settings.steps - 1:
            moved = np.asarray(turn(jax.random.fold_in(move_key, step), jnp.asarray(moved, jnp.float32)), np.float64)
        for b in range(count):
            if active[b]:
                measured[b], logit[b] = softmax[b, labels[b]], logits[b, labels[b]]
                active[b] = measured[b] < threshold[b]
            if active[b]:
                x[b], updates[b] = moved[b], updates[b] + 1
    return x, measured, updates, logit


def test_against_the_loop_written_out(wide):
    teacher, numpy = wide
    settings = ClassImpressionSettings(steps=3, confidence=(0.7, 1.0), learning_rate=0.3, rotation=0.3, shift=0.5)
    made = core.run(class_impressions(teacher, settings, 12, 12), KEY, 1)
    start = core.run(class_impressions(teacher, settings, 12, 12, control=True), KEY, 1).state.images
    _, stop_key, move_key = jax.random.split(jax.random.fold_in(KEY, 0), 3)
    threshold = np.asarray(jax.random.uniform(stop_key, (12,), minval=0.7, maxval=1.0))
    x, measured, updates, logit = written_out(numpy, settings, np.array(start, np.float64), threshold, move_key)
    assert 0 < (updates < 3).sum() < 12, "some stop and some do not"
    assert x.min() == -0.25, "the box was reached"
    assert (np.abs(measured - threshold) > 1e-4).all(), "none so near that rounding decides"
    np.testing.assert_allclose(made.state.images, x, atol=1e-4)
    np.testing.assert_allclose(made.metrics["updates"][0], updates.mean(), rtol=1e-6)
    np.testing.assert_allclose(made.metrics["reached"][0], (measured >= threshold).mean(), rtol=1e-6)
    np.testing.assert_allclose(made.metrics["loss"][0], -logit.mean(), rtol=1e-4)


@pytest.mark.parametrize("only", [{"rotation": 0.5}, {"scaling": (0.5, 0.6)}, {"shift": 2.0}])
def test_each_transformation_alone_moves_images(teacher, only):
    images = {}
    for name, moves in (("still", STILL), ("moved", {**STILL, **only})):
        settings = ClassImpressionSettings(steps=2, confidence=(1.0, 1.0), learning_rate=1e-6, **moves)
        images[name] = core.run(class_impressions(teacher, settings, 3, 3), KEY, 1).state.images
    assert np.abs(images["moved"] - images["still"]).max() > 0.05


@pytest.mark.parametrize("confidence", [(1.0, 1.0), (1e-3, 1e-3)])
def test_the_ends_of_the_confidence_are_allowed(confidence):
    assert ClassImpressionSettings(confidence=confidence).confidence == confidence
