"""Images of another data set in the shape of this one."""

import numpy as np
import pytest

from dfke_jax import core
from dfke_jax.synthesis.fitting import fitted


def test_fitted_sizes_and_channels():
    rng = np.random.default_rng(0)
    grey = rng.uniform(size=(3, 4, 4, 1)).astype(np.float32)
    colour = rng.integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(fitted(grey, (4, 4, 1)), grey)
    np.testing.assert_array_equal(fitted(grey, (4, 4, 3)), grey.repeat(3, 3))
    np.testing.assert_allclose(fitted(colour, (4, 4, 1)), colour.mean(3, keepdims=True) / 255, atol=1e-6)
    larger = fitted(colour, (9, 7, 3))
    assert larger.shape == (3, 9, 7, 3)
    assert larger.dtype == np.float32
    assert larger.min() >= 0
    assert larger.max() <= 1
    np.testing.assert_allclose(fitted(np.full((2, 4, 4, 1), 0.3, np.float32), (8, 8, 1)), 0.3, atol=1e-6)
    ramp = np.broadcast_to(np.arange(4, dtype=np.float32)[None, :, None, None] / 4, (1, 4, 4, 1))
    assert (np.diff(fitted(ramp, (8, 8, 1))[0, :, 0, 0]) >= 0).all()
    with pytest.raises(core.InputError, match="cannot turn images of 3 channels into 2"):
        fitted(colour, (4, 4, 2))
    with pytest.raises(core.InputError, match=r"must lie in \[0.0, 1.0\]"):
        fitted(grey + 1, (4, 4, 1))


def test_bytes_of_the_right_size_are_scaled():
    pixels = np.random.default_rng(5).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    np.testing.assert_allclose(fitted(pixels, (4, 4, 3)), pixels / 255, atol=1e-7)
    for shape in ((4, 5, 3), (5, 4, 3)):
        assert fitted(pixels, shape).shape == (2, *shape)
