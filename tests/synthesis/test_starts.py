"""Start images: their statistics, the box, and smoothness."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError, UnknownNameError
from dfke_jax.synthesis import gaussian_noise, smooth_noise, start_images, uniform_noise
from dfke_jax.synthesis.starts import SynthesisSettings

SHAPE = (40, 12, 12, 2)
PIXELS = 40 * 12 * 12 * 2


def test_uniform():
    x = np.asarray(uniform_noise(jax.random.key(0), SHAPE))
    assert x.shape == SHAPE
    assert abs(x.mean() - 0.5) < 5 * np.sqrt(1 / 12 / PIXELS)
    assert abs(x.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / PIXELS)
    assert 0 <= x.min() < 0.01 < 0.99 < x.max() < 1


def test_gaussian_is_clipped():
    x = np.asarray(gaussian_noise(jax.random.key(1), SHAPE, 0.5, 0.05))
    assert abs(x.mean() - 0.5) < 5 * 0.05 / np.sqrt(PIXELS)
    assert abs(x.std() - 0.05) < 5 * 0.05 / np.sqrt(2 * PIXELS)
    x = np.asarray(gaussian_noise(jax.random.key(1), SHAPE, 0.0, 0.1))
    assert abs((x == 0).mean() - 0.5) < 5 * 0.5 / np.sqrt(PIXELS), "half of it lies below the box"
    assert x.max() <= 1


def test_smooth_noise_has_the_level_and_contrast_asked_for():
    x = np.asarray(smooth_noise(jax.random.key(2), SHAPE, mean=(0.5, 0.5), sd=(0.05, 0.05), blur=(2.0, 2.0)))
    np.testing.assert_allclose(x.std((1, 2, 3)), 0.05, rtol=1e-3)
    level = x.mean((1, 2, 3))
    assert abs(level.mean() - 0.5) < 5 * level.std() / np.sqrt(40)
    dark = np.asarray(smooth_noise(jax.random.key(2), SHAPE, mean=(0.1, 0.2), sd=(0.0, 0.0)))
    levels = dark.mean((1, 2, 3))
    assert levels.min() >= 0.1 - 1e-6
    assert levels.max() <= 0.2 + 1e-6
    assert levels.std() > 0.01, "every image has its own"
    np.testing.assert_allclose(dark.std((1, 2, 3)), 0, atol=1e-6)


def neighbours(x, step=1):
    left, right = x[:, :, :-step].ravel(), x[:, :, step:].ravel()
    return np.corrcoef(left - left.mean(), right - right.mean())[0, 1]


def test_blurring_correlates_neighbours():
    options = {"mean": (0.5, 0.5), "sd": (0.05, 0.05)}
    shape = (200, 16, 16, 1)
    sharp = np.asarray(smooth_noise(jax.random.key(3), shape, blur=(0.1, 0.1), **options))
    soft = np.asarray(smooth_noise(jax.random.key(3), shape, blur=(1.5, 1.5), **options))
    assert abs(neighbours(sharp)) < 0.03
    # White noise blurred by a Gaussian of width σ has correlation exp(−d²/4σ²) at distance d.
    middle = soft[:, 5:11, 5:11]
    assert neighbours(middle) == pytest.approx(np.exp(-1 / (4 * 1.5**2)), abs=0.05)
    assert neighbours(middle, 3) == pytest.approx(np.exp(-9 / (4 * 1.5**2)), abs=0.1)
    transposed = soft.transpose(0, 2, 1, 3)
    assert neighbours(transposed[:, 5:11, 5:11]) == pytest.approx(neighbours(middle), abs=0.05)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "smooth"])
def test_by_name(kind):
    key = jax.random.key(4)
    x = start_images(kind, key, SHAPE, mean=(0.2, 0.3), sd=(0.4, 0.4), blur=(1.0, 2.0))
    expected = {
        "uniform": lambda: uniform_noise(key, SHAPE),
        "gaussian": lambda: gaussian_noise(key, SHAPE, 0.2, 0.4),
        "smooth": lambda: smooth_noise(key, SHAPE, (0.2, 0.3), (0.4, 0.4), (1.0, 2.0)),
    }[kind]()
    np.testing.assert_array_equal(x, expected)
    assert x.dtype == jnp.float32
    assert x.min() >= 0
    assert x.max() <= 1
    assert not np.array_equal(x, start_images(kind, jax.random.key(5), SHAPE, mean=(0.2, 0.3), sd=(0.4, 0.4)))


def test_unknown_name():
    with pytest.raises(UnknownNameError, match="unknown start distribution 'smoth'; nearest: smooth"):
        start_images("smoth", jax.random.key(0), SHAPE)


def test_gaussian_pixels_are_mean_plus_sd_times_noise():
    noise = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
    x = np.asarray(gaussian_noise(jax.random.key(1), SHAPE, 0.8, 0.3))
    np.testing.assert_allclose(x, np.clip(0.8 + 0.3 * noise, 0, 1), atol=1e-6)
    assert (x == 1).any(), "the top of the box was reached"


def test_smooth_noise_written_out():
    """Blurred along both axes by a matrix of weights, scaled to its own deviation, image by image."""
    shape = (3, 5, 4, 2)
    key = jax.random.key(6)
    x = np.asarray(smooth_noise(key, shape, mean=(0.3, 0.9), sd=(0.1, 0.5), blur=(0.5, 2.0)))
    keys = jax.random.split(key, 4)
    level, contrast, sigma = (
        np.asarray(jax.random.uniform(k, (3, 1, 1, 1), minval=low, maxval=high)).ravel()
        for k, (low, high) in zip(keys[:3], ((0.3, 0.9), (0.1, 0.5), (0.5, 2.0)), strict=True)
    )
    noise = np.asarray(jax.random.normal(keys[3], shape), np.float64)
    for b in range(3):
        rows, columns = np.zeros((5, 5)), np.zeros((4, 4))
        for weights in (rows, columns):
            for i in range(len(weights)):
                for j in range(len(weights)):
                    weights[i, j] = np.exp(-((i - j) ** 2) / (2 * sigma[b] ** 2))
                weights[i] /= weights[i].sum()
        blurred = np.stack([rows @ noise[b, :, :, c] @ columns.T for c in range(2)], -1)
        expected = np.clip(level[b] + contrast[b] * blurred / blurred.std(), 0, 1)
        np.testing.assert_allclose(x[b], expected, atol=1e-5)
    assert (x == 1).any(), "the top of the box was reached"
    assert (x == 0).any(), "and the bottom"


@pytest.mark.parametrize("kind", ["gaussian", "smooth"])
def test_settings_draw_what_they_say(kind):
    settings = SynthesisSettings(steps=1, start=kind, start_mean=(0.4, 0.7), start_sd=(0.2, 0.3), start_blur=(0.6, 0.9))
    expected = start_images(kind, jax.random.key(7), SHAPE, mean=(0.4, 0.7), sd=(0.2, 0.3), blur=(0.6, 0.9))
    np.testing.assert_array_equal(settings.draw(jax.random.key(7), SHAPE), expected)


def test_no_step_is_refused():
    with pytest.raises(InputError, match="at least one step, got 0"):
        SynthesisSettings(steps=0)
