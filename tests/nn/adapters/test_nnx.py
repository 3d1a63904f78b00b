"""Flax NNX modules as white boxes: against the layers called by hand."""

import jax
import numpy as np
import pytest
from flax import nnx

from dfke_jax.nn.adapters import from_nnx

SHAPE = (6, 6, 2)
IMAGES = np.random.default_rng(0).random((4, *SHAPE), np.float32)


class Own(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.last(self.dropout(nnx.relu(x).mean((1, 2))))


@pytest.fixture(scope="module")
def own():
    model = Own(nnx.Rngs(0))
    model(3 * IMAGES)  # in training mode: moves the running statistics
    return model


@pytest.mark.slow
def test_what_a_module_shows_is_what_its_layers_compute(own):
    made = from_nnx(own, SHAPE)
    seen = jax.jit(lambda made, images: made.observe(images, activations=True, moments=True))(made, IMAGES)
    conv, norm = own.blocks
    entered = np.asarray(conv(IMAGES), np.float64)
    mean, var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    assert np.abs(mean).max() > 1e-3
    normal = (entered - mean) / np.sqrt(var + norm.epsilon)
    features = np.maximum(normal, 0).mean((1, 2))
    kernel, bias = np.asarray(own.last.kernel[...]), np.asarray(own.last.bias[...])
    np.testing.assert_allclose(seen.logits, features @ kernel + bias, atol=1e-5)
    assert set(seen.activations) == {"blocks/0", "blocks/1", "last", "features"}
    np.testing.assert_allclose(seen.activations["blocks/0"], entered, atol=1e-5)
    np.testing.assert_allclose(seen.activations["blocks/1"], normal, atol=1e-5)
    np.testing.assert_allclose(seen.activations["features"], features, atol=1e-5)
    (moments,) = seen.moments
    np.testing.assert_allclose(moments.mean, entered.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(moments.var, entered.var((0, 1, 2)), atol=1e-5)
    np.testing.assert_array_equal(moments.running_mean, mean)
    np.testing.assert_array_equal(moments.running_var, var)
    np.testing.assert_array_equal(made.head_kernel, kernel)
    assert made.missing == ()
    assert own.dropout.deterministic is False  # the caller's module stays in training mode
    assert type(own.last).__call__ is nnx.Linear.__call__
