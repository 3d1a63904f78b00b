"""Normalisation, pooling and the record of activations."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.nn.layers import (
    BatchNorm,
    avg_pool,
    check_image_size,
    flatten,
    global_avg_pool,
    head,
    max_pool,
    record,
)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


def norm_variables(channels, seed=1):
    rng = np.random.default_rng(seed)
    numbers = lambda low, high: rng.uniform(low, high, channels).astype(np.float32)
    return {
        "params": {"scale": numbers(0.5, 2), "bias": numbers(-1, 1)},
        "batch_stats": {"mean": numbers(-1, 1), "var": numbers(0.5, 2)},
    }


def naive_norm(x, variables, mean, var, epsilon=1e-5):
    y = np.empty_like(x)
    for c in range(x.shape[-1]):
        scale, bias = variables["params"]["scale"][c], variables["params"]["bias"][c]
        y[..., c] = scale * (x[..., c] - mean[c]) / np.sqrt(var[c] + epsilon) + bias
    return y


@pytest.mark.parametrize("shape", [(6, 3), (4, 5, 3, 2)])
def test_batch_norm(shape):
    x, variables = draw(*shape), norm_variables(shape[-1])
    axes = tuple(range(x.ndim - 1))
    mean, var = x.mean(axes), x.var(axes)
    running = variables["batch_stats"]

    evaluated, state = BatchNorm().apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(evaluated, naive_norm(x, variables, running["mean"], running["var"]), atol=1e-5)
    np.testing.assert_array_equal(state["batch_stats"]["mean"], running["mean"])

    trained, state = BatchNorm(momentum=0.8).apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(trained, naive_norm(x, variables, mean, var), atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.8 * running["mean"] + 0.2 * mean, atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], 0.8 * running["var"] + 0.2 * var, atol=1e-5)

    # Statistics of the batch without a place for new running ones
    np.testing.assert_allclose(BatchNorm().apply(variables, x, train=True), trained, atol=1e-6)


@pytest.mark.parametrize("train", [False, True])
def test_batch_norm_reports_moments_and_leaves_running_statistics(train):
    x, variables = draw(3, 4, 4, 2), norm_variables(2)
    y, state = BatchNorm().apply(variables, x, train=train, mutable=["normalisation"])
    assert set(state) == {"normalisation"}
    mean, var = state["normalisation"]["moments"]
    np.testing.assert_allclose(mean, x.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(var, x.var((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(y, BatchNorm().apply(variables, x, train=train), atol=1e-6)


def test_batch_norm_starts_as_the_identity():
    x = draw(5, 3)
    variables = BatchNorm().init(jax.random.key(0), x, train=True)
    assert set(variables) == {"params", "batch_stats"}
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))
    np.testing.assert_allclose(BatchNorm().apply(variables, x), x, rtol=1e-4)
    bare = BatchNorm(use_scale=False, use_bias=False).init(jax.random.key(0), x)
    assert "params" not in bare


def test_batch_norm_computes_statistics_of_half_precision_in_float32():
    x = (draw(64, 2) + 100).astype(jnp.bfloat16)
    variables = BatchNorm().init(jax.random.key(0), x)
    y, state = BatchNorm().apply(variables, x, train=True, mutable=["normalisation"])
    assert y.dtype == jnp.bfloat16
    mean, var = state["normalisation"]["moments"]
    assert mean.dtype == var.dtype == jnp.float32
    np.testing.assert_allclose(var, np.asarray(x, np.float64).var(0), rtol=1e-4)


@pytest.mark.parametrize(("shape", "size"), [((2, 6, 8, 3), 2), ((2, 7, 9, 3), 2), ((1, 8, 7, 2), 3)])
def test_pooling(shape, size):
    x = jnp.asarray(draw(*shape))
    window = ((size, size), (size, size), "VALID")
    np.testing.assert_array_equal(max_pool(x, size), nn.max_pool(x, *window))
    np.testing.assert_allclose(avg_pool(x, size), nn.avg_pool(x, *window), atol=1e-6)
    found, expected = (
        jax.grad(lambda x, pool=pool: (pool(x) ** 2).sum())(x)
        for pool in (lambda x: max_pool(x, size), lambda x: nn.max_pool(x, *window))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(global_avg_pool(x), np.asarray(x).mean((1, 2)), atol=1e-6)


def test_ties_share_the_gradient_of_max_pool():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_allclose(gradient, np.full((1, 2, 2, 1), 0.25))


def test_flatten_keeps_rows():
    x = draw(2, 3, 4, 5)
    np.testing.assert_array_equal(flatten(x)[1], x[1].ravel())


def test_record():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = record(self, "first", nn.Dense(3, name="first")(x))
            return head(4)(record(self, "features", nn.relu(x)))

    x = draw(2, 5)
    variables = Network().init(jax.random.key(0), x)
    variables = {"params": variables["params"]}
    assert isinstance(Network().apply(variables, x), jax.Array)  # nothing is kept unless asked for
    logits, state = Network().apply(variables, x, mutable=["activations"])
    recorded = state["activations"]
    assert set(recorded) == {"@first", "@features"}
    params = variables["params"]
    np.testing.assert_allclose(recorded["@first"], x @ params["first"]["kernel"], atol=1e-5)
    np.testing.assert_array_equal(recorded["@features"], np.maximum(recorded["@first"], 0))
    np.testing.assert_allclose(logits, recorded["@features"] @ params["head"]["kernel"], atol=1e-5)


def test_head_and_image_size():
    assert head(3).name == "head"
    with pytest.raises(InputError, match="at least two classes, got 1"):
        head(1)
    check_image_size(np.zeros((1, 32, 32, 1)), (32, 32), "LeNet-5")
    for shape in ((1, 28, 28, 1), (32, 32, 1)):
        with pytest.raises(InputError, match="LeNet-5 is defined for 32×32 images"):
            check_image_size(np.zeros(shape), (32, 32), "LeNet-5")
