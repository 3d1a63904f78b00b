"""Functions of others with this package's convolutions: the same numbers, and fast forms inside loops."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dfke_jax.nn import convolution
from dfke_jax.nn.reroute import with_fast_convolutions

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the fast forms are the default on CPU only")
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 20, 8, 8)).astype(np.float32)
KERNELS = [RNG.normal(size=shape).astype(np.float32) / 10 for shape in ((24, 20, 3, 3), (24, 24, 3, 3), (24, 1, 3, 3))]


def foreign(kernels, x):
    """In PyTorch's layout: a stride, a nested program, a custom derivative, a checkpoint, a grouped convolution."""
    layout = ("NCHW", "OIHW", "NCHW")
    x = lax.conv_general_dilated(x, kernels[0], (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)
    x = jax.nn.relu(x)
    inner = lambda x: lax.conv_general_dilated(x, kernels[1], (1, 1), "SAME", dimension_numbers=layout)
    x = jax.jit(inner)(x) + jax.checkpoint(lambda x: jnp.tanh(inner(x)))(x)
    last = lax.conv_general_dilated(x, kernels[2], (1, 1), "VALID", dimension_numbers=layout, feature_group_count=24)
    return {"maps": last, "sum": x.sum((2, 3))}


def test_values_and_gradients_are_the_functions_own():
    def both(function):
        def loss(kernels, x):
            found = function(kernels, x)
            return jnp.sum(jnp.sin(found["maps"])) + jnp.sum(jnp.cos(found["sum"])), found

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(KERNELS, X)

    plain, ours = both(foreign), both(with_fast_convolutions(foreign))
    assert jax.tree.structure(plain) == jax.tree.structure(ours)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(ours), strict=True):
        scale = max(1.0, np.abs(one).max())
        np.testing.assert_allclose(other / scale, one / scale, atol=2e-5)


@on_cpu
@pytest.mark.parametrize("reroute", [True, False])
def test_gradients_inside_a_loop_have_the_fast_form(reroute):
    function = with_fast_convolutions(lambda kernels, x: foreign([*kernels[:2], jnp.zeros((24, 1, 3, 3))], x)["sum"])

    def descent(kernels, x):
        step = lambda x, _: (x - jax.grad(lambda x: jnp.sum(jnp.square(function(kernels, x))))(x), None)
        return lax.scan(step, x, None, length=2)[0]

    with convolution("auto" if reroute else "lax"):
        text = jax.jit(descent).lower(KERNELS, X).compile().as_text()
    assert "while" in text
    lines = [line for line in text.splitlines() if "dim_labels=" in line]
    assert lines
    slow = [line for line in lines if not re.search("dim_labels=b01f_01io->b01f", line)]
    assert bool(slow) != reroute
