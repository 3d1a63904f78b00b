"""Priors against loops over pixels, and closed forms against integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from dfke_jax.core import UnknownNameError
from dfke_jax.nn.observation import Moments
from dfke_jax.synthesis import l2, l2_norm, normalisation_statistics, total_variation, total_variation_l2

RNG = np.random.default_rng(1)
IMAGES = RNG.uniform(size=(2, 4, 5, 3)).astype(np.float32)


def test_total_variation():
    expected = np.zeros(2)
    batch, height, width, channels = IMAGES.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    if i + 1 < height:
                        expected[b] += abs(IMAGES[b, i + 1, j, c] - IMAGES[b, i, j, c])
                    if j + 1 < width:
                        expected[b] += abs(IMAGES[b, i, j + 1, c] - IMAGES[b, i, j, c])
    np.testing.assert_allclose(total_variation(jnp.asarray(IMAGES)), expected, rtol=1e-5)


def test_total_variation_in_four_directions():
    batch, height, width = IMAGES.shape[:3]
    expected = 0.0
    for down, right in ((1, 0), (0, 1), (1, 1), (1, -1)):
        squares = 0.0
        for b in range(batch):
            for i in range(height - down):
                for j in range(width):
                    if 0 <= j + right < width:
                        difference = IMAGES[b, i + down, j + right].astype(float) - IMAGES[b, i, j]
                        squares += (difference**2).sum()
        expected += squares**0.5
    value = total_variation_l2(jnp.asarray(IMAGES))
    assert value.shape == ()
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_energies():
    flat = IMAGES.astype(float).reshape(2, -1)
    np.testing.assert_allclose(l2(jnp.asarray(IMAGES)), [sum(v * v for v in row) for row in flat], rtol=1e-5)
    np.testing.assert_allclose(l2_norm(jnp.asarray(IMAGES)), sum(v * v for v in flat.ravel()) ** 0.5, rtol=1e-5)


@pytest.mark.parametrize("prior", [total_variation, total_variation_l2, l2, l2_norm])
def test_gradients_of_flat_images_are_finite(prior):
    for value in (0.0, 0.5):
        slope = jax.grad(lambda x: prior(x).sum())(jnp.full((2, 4, 4, 1), value))
        assert np.isfinite(slope).all()
        if prior in (total_variation, total_variation_l2):
            np.testing.assert_array_equal(slope, 0)


def moments(channels=(3, 5)):
    draw = lambda n, low, high: jnp.asarray(RNG.uniform(low, high, n), jnp.float32)
    return tuple(Moments(draw(n, -1, 1), draw(n, 0.2, 2), draw(n, -1, 1), draw(n, 0.2, 2)) for n in channels)


def integral(mean, var, running_mean, running_var):
    p = scipy.stats.norm(mean, var**0.5)
    q = scipy.stats.norm(running_mean, running_var**0.5)
    reach = 12 * var**0.5
    return scipy.integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - reach, mean + reach)[0]


def naive(form, layers, first):
    total = 0.0
    for number, layer in enumerate(layers):
        means, variances, kl = [], [], 0.0
        for channel in range(len(layer.mean)):
            mean, var, running_mean, running_var = (float(part[channel]) for part in layer)
            means.append(mean - running_mean)
            variances.append(var - running_var)
            kl += integral(mean, var, running_mean, running_var)
        squares = [sum(v**2 for v in values) for values in (means, variances)]
        value = {"squared": sum(squares), "norm": squares[0] ** 0.5 + squares[1] ** 0.5, "kl": kl}[form]
        total += value * (first if number == 0 else 1)
    return total


@pytest.mark.parametrize("first", [1.0, 10.0])
@pytest.mark.parametrize("form", ["squared", "norm", "kl"])
def test_statistics_prior(form, first):
    layers = moments()
    np.testing.assert_allclose(normalisation_statistics(layers, form, first), naive(form, layers, first), rtol=1e-4)


@pytest.mark.parametrize("form", ["squared", "norm", "kl"])
def test_statistics_prior_is_zero_at_equality_and_has_a_gradient(form):
    layer = moments((4,))[0]
    at = lambda mean, var: normalisation_statistics([Moments(mean, var, layer.mean, layer.var)], form)
    value, slopes = jax.value_and_grad(at, (0, 1))(layer.mean, layer.var)
    assert abs(value) < 1e-5
    for slope in slopes:
        np.testing.assert_allclose(slope, 0, atol=1e-5)
    constant = jax.grad(at, (0, 1))(layer.mean, jnp.zeros(4))
    assert all(np.isfinite(slope).all() for slope in constant), "a batch of one constant value"


def test_unknown_form():
    with pytest.raises(UnknownNameError, match="unknown form of the statistics prior 'square'; nearest: squared"):
        normalisation_statistics(moments(), "square")


@pytest.mark.parametrize("form", ["squared", "norm", "kl"])
def test_a_channel_that_never_fired_costs_nothing(form):
    """Stored and found variance 0: no logarithm of 0 and no division by it; off its mean it costs, and finitely."""
    none = jnp.zeros(3)
    at = lambda mean: normalisation_statistics([Moments(mean, none, none, none)], form)
    np.testing.assert_allclose(at(none), 0, atol=1e-5)
    value, slope = jax.value_and_grad(at)(jnp.full(3, 0.1))
    assert value > 0.01
    assert np.isfinite(slope).all()
    assert (slope > 0).all()


@pytest.mark.parametrize("form", ["squared", "norm", "kl"])
def test_one_layer_and_its_weight(form):
    layers = moments((4,))
    single = normalisation_statistics(layers, form)
    np.testing.assert_allclose(normalisation_statistics(layers, form, 10.0), 10 * single, rtol=1e-5)
