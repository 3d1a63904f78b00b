"""MinGD against a loop over samples, against closed forms of a linear model, and its bookkeeping."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import InputError, UnknownNameError, device_mesh
from dfke_jax.dataset_inference import NORMS, MinGDSettings, gradient_evaluations, mingd

module = importlib.import_module("dfke_jax.dataset_inference.mingd")
FAST = MinGDSettings(max_steps=14, l1_step=0.3, l1_coordinates=3, l2_step=0.05, linf_step=0.01, lanes=8)


def naive(forward, gradient, image, target, norm, settings):
    """One sample, one target, one norm, a step at a time."""
    x = image.astype(np.float64).ravel()
    delta = np.zeros_like(x)
    for step in range(settings.max_steps + 1):
        hit = forward(x + delta).argmax() == target
        if hit or step == settings.max_steps:
            break
        g = gradient(x + delta, target)
        if norm == "linf":
            update = settings.linf_step * np.sign(g)
        elif norm == "l2":
            update = settings.l2_step * g / np.linalg.norm(g)
        else:
            now = x + delta
            movable = ~(((g < 0) & (now <= settings.l1_gap)) | ((g > 0) & (now >= 1 - settings.l1_gap)))
            if settings.l1_rule == "released":
                movable &= (now > 0) & (now < 1)
            order = [
                i for i in np.argsort(-np.abs(g) * movable, kind="stable")[: settings.l1_coordinates] if movable[i]
            ]
            update = np.zeros_like(x)
            update[order] = settings.l1_step / settings.l1_coordinates * np.sign(g[order])
        delta = np.clip(x + delta + update, 0, 1) - x
    size = {"l1": np.abs(delta).sum(), "l2": np.sqrt((delta**2).sum()), "linf": np.abs(delta).max()}[norm]
    return size, step, hit


def test_equals_a_loop_over_samples(network, by_hand, images):
    found = mingd(network, images, FAST)
    assert found.distances.shape == (7, 4, 3)
    expected = np.array(
        [[[naive(*by_hand, image, t, norm, FAST) for norm in NORMS] for t in range(4)] for image in images]
    )
    np.testing.assert_array_equal(found.steps, expected[..., 1])
    np.testing.assert_array_equal(found.reached, expected[..., 2].astype(bool))
    np.testing.assert_allclose(found.distances, expected[..., 0], atol=2e-5)
    assert 0.2 < np.mean(found.reached) < 1, "both ways to end occur"
    assert gradient_evaluations(found) == expected[..., 1].sum() + expected[..., 1].size


def test_the_released_l1_step_never_moves_black_and_white_pixels(network, by_hand, images):
    """The rule of the released code, a step at a time; ours moves such pixels inwards, and distances differ."""
    images = np.where(np.random.default_rng(5).uniform(size=images.shape) < 0.5, np.round(images), images)
    released = dataclasses.replace(FAST, l1_rule="released")
    found, ours = mingd(network, images, released), mingd(network, images, FAST)
    expected = np.array([[naive(*by_hand, image, target, "l1", released) for target in range(4)] for image in images])
    np.testing.assert_array_equal(found.steps[..., 0], expected[..., 1])
    np.testing.assert_allclose(found.distances[..., 0], expected[..., 0], atol=2e-5)
    assert np.abs(np.asarray(found.distances - ours.distances))[..., 0].max() > 0.1
    np.testing.assert_array_equal(found.distances[..., 1:], ours.distances[..., 1:])


def test_all_that_tie_move_in_a_released_l1_step():
    position = jnp.asarray([[0.0, 0.5, 0.5, 0.5, 1.0, 0.5]])
    gradient = jnp.asarray([[9.0, 2.0, -2.0, 1.0, -9.0, 0.0]])
    moved = {}
    for rule in ("inward", "released"):
        settings = MinGDSettings(l1_step=0.1, l1_coordinates=1, l1_rule=rule)
        moved[rule] = np.asarray(module._move(position, gradient, jnp.zeros(1, jnp.int32), settings, (0.0, 1.0)))[0]
    np.testing.assert_allclose(moved["inward"], [0.1, 0.5, 0.5, 0.5, 1.0, 0.5])
    np.testing.assert_allclose(moved["released"], [0.0, 0.6, 0.4, 0.5, 1.0, 0.5])


def test_the_class_that_is_given_already_is_at_distance_zero(network, images):
    found = mingd(network, images, FAST)
    own = np.asarray(network(images)).argmax(1)
    assert (np.asarray(found.distances)[np.arange(7), own] == 0).all()
    assert found.reached[np.arange(7), own].all()
    assert (np.asarray(found.distances) > 0).sum() == 7 * 3 * 3


def linear(weights, bias, x):
    return x.reshape(len(x), -1) @ weights + bias


def test_linear_classifier_in_closed_form():
    rng = np.random.default_rng(1)
    weights, bias = rng.normal(size=(20, 2)).astype(np.float32), np.float32([0.1, -0.1])
    images = rng.uniform(0.45, 0.55, (30, 20)).astype(np.float32)
    settings = MinGDSettings(max_steps=2000, l1_step=0.004, l1_coordinates=4, l2_step=1e-3, linf_step=2e-4)
    found = mingd(Partial(linear, jnp.asarray(weights), jnp.asarray(bias)[None]), images, settings)
    w, b = weights[:, 0] - weights[:, 1], bias[0] - bias[1]
    score = images.astype(np.float64) @ w + b
    other = (score > 0).astype(int)  # class 0 wins where the score is positive
    distances = np.asarray(found.distances)[np.arange(30), other]
    inside = np.abs(score) / np.abs(w).sum() < 0.3  # the box does not matter there
    assert inside.sum() >= 20
    top = np.sort(np.abs(w))[-4:].mean()  # an L1 step moves the four heaviest coordinates alike
    for i, (per_unit, step) in enumerate(((top, 0.004), (np.linalg.norm(w), 1e-3), (np.abs(w).sum(), 2e-4))):
        far = np.abs(score[inside]) / per_unit
        if i == 0:
            far, measured = far[far < 4 * 0.4], distances[inside, i][far < 4 * 0.4]
        else:
            measured = distances[inside, i]
        assert (measured >= far - 1e-4).all()
        assert (measured <= far + step + 1e-4).all()


@pytest.mark.parametrize("lanes", [1, 5, 40, 1000])
def test_the_number_of_lanes_changes_nothing(network, images, lanes):
    reference = mingd(network, images, FAST)
    found = mingd(network, images, MinGDSettings(**{**FAST.__dict__, "lanes": lanes}))
    np.testing.assert_array_equal(found.steps, reference.steps)
    np.testing.assert_allclose(found.distances, reference.distances, atol=1e-6)


def test_samples_are_split_over_devices(network, images, four):
    images = np.concatenate([images, images[:1]])
    reference = mingd(network, images, FAST)
    with jax.set_mesh(device_mesh(devices=four)):
        found = mingd(network, images, FAST)
    assert len(found.distances.sharding.device_set) == 4
    np.testing.assert_array_equal(found.steps, reference.steps)
    np.testing.assert_allclose(found.distances, reference.distances, atol=1e-6)


def test_the_nearest_wrong_classes(network, images):
    settings = MinGDSettings(**{**FAST.__dict__, "nearest": 2})
    found, every = mingd(network, images, settings), mingd(network, images, FAST)
    order = np.argsort(-np.asarray(network(images)), 1)[:, 1:3]
    np.testing.assert_array_equal(found.targets, order)
    np.testing.assert_allclose(
        found.distances, np.take_along_axis(np.asarray(every.distances), order[..., None], 1), atol=1e-6
    )


def test_another_box(network, images):
    """In a tight box no position leaves it, and fewer targets are reached."""
    grey = 0.45 + 0.1 * images
    settings = MinGDSettings(max_steps=100, l1_step=0.3, l1_coordinates=3, l2_step=0.05, linf_step=0.01)
    tight, wide = mingd(network, grey, settings, box=(0.4, 0.6)), mingd(network, grey, settings)
    assert tight.reached.sum() < wide.reached.sum()
    assert np.asarray(tight.distances)[..., 2].max() <= 0.15 + 1e-6
    assert np.asarray(wide.distances)[..., 2].max() > 0.15


@pytest.mark.parametrize("k", [1, 2, 5, 8])
def test_largest_marks_exactly_k(k):
    rng = np.random.default_rng(k)
    values = np.abs(rng.normal(size=(50, 8))).astype(np.float32)
    values[:25] = rng.integers(0, 3, (25, 8))  # ties, zeros among them
    expected = np.zeros(values.shape, bool)
    np.put_along_axis(expected, np.argsort(-values, 1, kind="stable")[:, :k], True, 1)
    np.testing.assert_array_equal(module.largest(jnp.asarray(values), k), expected)


def test_a_flat_model_moves_nothing():
    found = mingd(Partial(flat), np.full((2, 3), 0.5, np.float32), MinGDSettings(max_steps=5))
    assert (np.asarray(found.distances) == 0).all()
    np.testing.assert_array_equal(found.reached[..., 0], [[True, False]] * 2)


def flat(x):
    return jnp.zeros((len(x), 2)) + 0 * x.sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("max_steps must be at least 1, got 0", {"max_steps": 0}),
        ("lanes must be at least 1, got 0", {"lanes": 0}),
        ("l1_coordinates must be at least 1, got 0", {"l1_coordinates": 0}),
        ("nearest must be at least 1, got 0", {"nearest": 0}),
        ("l2_step must be positive, got 0", {"l2_step": 0.0}),
        ("linf_step must be positive, got nan", {"linf_step": float("nan")}),
        ("l1_gap must not be negative", {"l1_gap": -1.0}),
    ],
)
def test_settings_are_checked(message, changes):
    with pytest.raises(InputError, match=message):
        MinGDSettings(**changes)
    with pytest.raises(UnknownNameError, match="nearest: released"):
        MinGDSettings(l1_rule="release")  # type: ignore[arg-type]


def test_inputs_are_checked(network, images):
    with pytest.raises(InputError, match="3 wrong classes to aim at, not 4"):
        mingd(network, images, MinGDSettings(nearest=4))
    with pytest.raises(InputError, match="at least one sample, got shape"):
        mingd(network, images[:0])
