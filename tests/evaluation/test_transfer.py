"""Adversarial examples against NumPy on a linear classifier, and what counts as a transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.evaluation import fgsm, pgd, transfer_rate, wilson_interval
from dfke_jax.evaluation.transfer import _fgsm
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP

KEY = jax.random.key(81)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 3, 3, 1)).astype(np.float32)
LABELS = np.array([0, 1, 2, 3, 0, 1])
WEIGHTS = RNG.normal(size=(9, 4))


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


CLASSIFIER = Partial(linear, jnp.asarray(WEIGHTS, jnp.float32))


def slope(flat):
    """∂H/∂x = W (p − e_y), row by row."""
    scores = np.exp(flat @ WEIGHTS)
    return (scores / scores.sum(1, keepdims=True) - np.eye(4)[LABELS]) @ WEIGHTS.T


def test_fgsm_is_one_step_along_the_sign():
    flat = IMAGES.reshape(6, 9).astype(np.float64)
    expected = np.clip(flat + 0.2 * np.sign(slope(flat)), 0.1, 0.9)
    made = fgsm(CLASSIFIER, jnp.asarray(IMAGES), jnp.asarray(LABELS), 0.2, (0.1, 0.9))
    np.testing.assert_allclose(made.reshape(6, 9), expected, atol=1e-6)


def test_pgd_is_the_projected_loop():
    flat = IMAGES.reshape(6, 9).astype(np.float64)
    x = flat
    for _ in range(7):
        x = x + 0.05 * np.sign(slope(x))
        x = np.clip(np.clip(x, flat - 0.12, flat + 0.12), 0, 1)
    made = pgd(KEY, CLASSIFIER, IMAGES, LABELS, 0.12, step_size=0.05, steps=7, random_start=False)
    np.testing.assert_allclose(made.reshape(6, 9), x, atol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_a_random_start_stays_in_the_ball_and_the_box(epsilon):
    made = [np.asarray(pgd(jax.random.key(i), CLASSIFIER, IMAGES, LABELS, epsilon, steps=1)) for i in range(2)]
    for images in made:
        assert (np.abs(images - IMAGES) <= epsilon + 1e-6).all()
        assert images.min() >= 0
        assert images.max() <= 1
    assert np.array_equal(*made) == (epsilon == 0)


def test_pgd_raises_the_loss_of_a_network_more_than_fgsm():
    net = Classifier.create(MLP(4, (32, 32)), jax.random.key(1), (3, 3, 1))
    images = jax.random.uniform(KEY, (64, 3, 3, 1))
    labels = jnp.argmax(net(images), -1)
    loss = lambda x: float(-jnp.take_along_axis(jax.nn.log_softmax(net(x)), labels[:, None], 1).mean())
    one, many = fgsm(net, images, labels, 0.2), pgd(KEY, net, images, labels, 0.2, random_start=False)
    assert loss(images) < loss(one) < loss(many)


def test_parameters_are_arguments_and_bytes_are_pixels():
    fgsm(CLASSIFIER, IMAGES, LABELS, 0.2)
    compiled = _fgsm._cache_size()
    fgsm(Partial(linear, -CLASSIFIER.args[0]), IMAGES, LABELS, 0.1)
    assert _fgsm._cache_size() == compiled
    pixels = (IMAGES * 255).astype(np.uint8)
    plain = lambda images: linear(CLASSIFIER.args[0], images)
    np.testing.assert_allclose(
        fgsm(plain, pixels, LABELS, 0.2), fgsm(CLASSIFIER, (pixels / 255).astype(np.float32), LABELS, 0.2), atol=1e-6
    )


def test_only_inputs_that_were_right_count():
    labels = np.array([0, 1, 2, 0, 1])
    clean = np.array([0, 1, 2, 0, 2])  # the last is wrong anyway
    after = np.array([1, 1, 0, 0, 0])
    assert transfer_rate(clean, after, labels) == {"rate": 0.5, "interval": wilson_interval(2, 4), "n": 4}
    assert transfer_rate(np.eye(3)[clean], np.eye(3)[after], labels)["rate"] == 0.5
    assert transfer_rate(clean[4:], after[4:], labels[4:]) == {"rate": None, "interval": (None, None), "n": 0}


def test_numbers_that_mean_nothing():
    with pytest.raises(InputError, match="not be negative, got -1"):
        fgsm(CLASSIFIER, IMAGES, LABELS, -1)
    with pytest.raises(InputError, match="steps at least 1"):
        pgd(KEY, CLASSIFIER, IMAGES, LABELS, 0.1, steps=0)
    with pytest.raises(InputError, match="same N"):
        transfer_rate(np.array([0, 1]), np.array([0]), np.array([0, 1]))
