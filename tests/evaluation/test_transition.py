"""Beliefs along adversarial paths, against a walk written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import mean_transition_error, transition_curves

SHAPE = (2, 2, 1)
RNG = np.random.default_rng(3)
FIRST, SECOND = RNG.normal(size=(2, 4, 3))
IMAGES = RNG.uniform(size=(11, *SHAPE)).astype(np.float32)


def linear(weights, images):
    return images.reshape(len(images), -1) @ weights


def network(weights):
    return Partial(linear, jnp.asarray(weights, jnp.float32))


def softmax(z):
    return np.exp(z) / np.exp(z).sum()


def walked(first, second, image, target, steps, size):
    """Of a linear softmax classifier the gradient of the cross-entropy is W(p − e_j)."""
    x, beliefs = np.float64(image).ravel(), []
    for _ in range(steps):
        p, q = softmax(x @ first), softmax(x @ second)
        beliefs.append((p[target], q[target]))
        x = x - size * first @ (p - np.eye(3)[target])
    return np.transpose(beliefs)


def test_the_walk_written_out():
    curves = transition_curves(network(FIRST), network(SECOND), IMAGES, steps=4, step_size=0.3, batch_size=4)
    own, other = (linear(w, IMAGES).argmax(1) for w in (FIRST, SECOND))
    np.testing.assert_array_equal(curves.rows, np.flatnonzero(own == other))
    assert 0 < len(curves.rows) < 11
    apart = []
    for place, row in enumerate(curves.rows):
        for nth, target in enumerate((own[row] + 1 + np.arange(2)) % 3):
            first, second = walked(FIRST, SECOND, IMAGES[row], target, 4, 0.3)
            np.testing.assert_allclose(curves.first[place, nth], first, atol=1e-5)
            np.testing.assert_allclose(curves.second[place, nth], second, atol=1e-5)
            apart.append(np.abs(first - second).mean())
    assert mean_transition_error(curves) == pytest.approx(np.mean(apart), rel=1e-4)


def test_a_network_and_itself_never_part():
    curves = transition_curves(network(FIRST), network(FIRST), IMAGES, steps=3)
    assert len(curves.rows) == 11
    assert mean_transition_error(curves) == 0
    assert (curves.first[..., -1] > curves.first[..., 0]).all(), "towards the target"


def test_pieces_do_not_matter_and_pixels_may_be_bytes():
    whole = transition_curves(network(FIRST), network(SECOND), IMAGES, steps=2)
    parts = transition_curves(network(FIRST), network(SECOND), IMAGES, steps=2, batch_size=3)
    np.testing.assert_array_equal(whole.rows, parts.rows)
    np.testing.assert_allclose(whole.second, parts.second, atol=1e-6)
    stored = np.uint8(np.round(255 * IMAGES))
    bytes_ = transition_curves(network(FIRST), network(FIRST), stored, steps=2)
    np.testing.assert_allclose(
        bytes_.first, transition_curves(network(FIRST), network(FIRST), stored / np.float32(255), steps=2).first,
        atol=1e-5,
    )  # fmt: skip


def test_refusals():
    for wrong in ({"steps": 0}, {"step_size": 0.0}, {"batch_size": 0}):
        with pytest.raises(InputError, match="must be at least 1 and step_size positive"):
            transition_curves(network(FIRST), network(SECOND), IMAGES, **wrong)
    with pytest.raises(InputError, match="agree on none of 11 images"):
        transition_curves(
            jax.jit(lambda x: jnp.eye(3)[jnp.zeros(len(x), int)]),
            jax.jit(lambda x: jnp.eye(3)[jnp.ones(len(x), int)]),
            IMAGES,
        )
