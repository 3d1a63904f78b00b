"""Equinox modules as white boxes: against the layers called by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core import InputError
from dfke_jax.nn.adapters import from_equinox

eqx = pytest.importorskip("equinox")

SHAPE = (6, 6, 2)
IMAGES = np.random.default_rng(0).random((4, *SHAPE), np.float32)


class Own(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.BatchNorm
    rest: list

    def __init__(self, key, mode):
        self.conv = eqx.nn.Conv2d(2, 4, 3, key=key)
        self.norm = eqx.nn.BatchNorm(4, "images", mode=mode, momentum=0.5)
        self.rest = [eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=key)]

    def __call__(self, x, state, key=None):
        x, state = self.norm(self.conv(x), state)
        x = self.rest[0](jax.nn.relu(x).mean((1, 2)), key=key)
        return self.rest[1](x), state


@pytest.mark.parametrize("mode", ["ema", "batch"])
def test_what_a_module_shows_is_what_its_layers_compute(mode):
    model, state = eqx.nn.make_with_state(Own)(jax.random.key(0), mode)
    entered = np.asarray(jax.vmap(model.conv)(jnp.asarray(IMAGES.transpose(0, 3, 1, 2))), np.float64)
    learn = jax.vmap(model.norm, in_axes=(0, None), out_axes=(0, None), axis_name="images")
    for _ in range(2):  # moves the running statistics
        _, state = learn(jnp.asarray(3 * entered, jnp.float32), state)
    made = from_equinox(model, SHAPE, state=state)
    seen = jax.jit(lambda made, images: made.observe(images, activations=True, moments=True))(made, IMAGES)
    # The average over equal batches is that batch's; but "batch" starts at a variance of 1 and divides by 1 − 0.5².
    mean, var = 3 * entered.mean((0, 2, 3)), 9 * entered.var((0, 2, 3)) + (0.25 / 0.75 if mode == "batch" else 0)
    across = lambda values: values.reshape(1, -1, 1, 1)
    normal = (entered - across(mean)) / np.sqrt(across(var) + model.norm.eps)
    features = np.maximum(normal, 0).mean((2, 3))
    kernel, bias = np.asarray(model.rest[1].weight).T, np.asarray(model.rest[1].bias)
    np.testing.assert_allclose(seen.logits, features @ kernel + bias, atol=1e-4)
    assert set(seen.activations) == {"conv", "norm", "rest/1", "features"}
    np.testing.assert_allclose(seen.activations["conv"], entered.transpose(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(seen.activations["features"], features, atol=1e-4)
    (moments,) = seen.moments
    np.testing.assert_allclose(moments.mean, entered.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(moments.var, entered.var((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(moments.running_mean, mean, atol=1e-4)
    np.testing.assert_allclose(moments.running_var, var, atol=1e-4)
    np.testing.assert_array_equal(made.head_kernel, kernel)
    assert made.missing == ()


def test_a_module_without_a_state_and_channels_last():
    model = eqx.nn.Sequential([eqx.nn.Lambda(jnp.ravel), eqx.nn.MLP(72, 3, 5, 1, key=jax.random.key(1))])
    made = from_equinox(model, SHAPE, layout="NHWC")
    np.testing.assert_allclose(made(IMAGES), jax.vmap(model)(IMAGES), atol=1e-5)
    assert dict(made.missing) == {"moments": "it has no batch normalisation with running statistics"}
    with pytest.raises(InputError, match="layout must be"):
        from_equinox(model, SHAPE, layout="CHWN")
