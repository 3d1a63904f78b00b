"""Convolution in tiles and the pooling after it, against the plain operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core import run
from dfke_jax.nn import build, convolution
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.layers import PooledConv, max_pool
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.tiles import FeatureMaps, tile_size, tiled_convolution
from dfke_jax.nn.training import optimiser, training

CASES = [  # height, width, channels, kernel, filters, tile
    (32, 32, 1, 5, 6, 4),
    (14, 14, 6, 5, 16, 2),
    (14, 10, 2, 3, 4, 4),
    (12, 8, 3, 1, 2, 2),
    (9, 11, 2, 4, 3, 2),
    (10, 10, 1, 3, 5, 4),
]


def plain(images, kernel):
    return lax.conv_general_dilated(images, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def draw(height, width, channels, k, filters, batch=3):
    keys = jax.random.split(jax.random.key(height * width + k), 3)
    images = jax.random.normal(keys[0], (batch, height, width, channels))
    return images, jax.random.normal(keys[1], (k, k, channels, filters)), jax.random.normal(keys[2], (filters,))


@pytest.mark.parametrize(("height", "width", "channels", "k", "filters", "tile"), CASES)
def test_tiles_hold_the_plain_convolution(height, width, channels, k, filters, tile):
    images, kernel, bias = draw(height, width, channels, k, filters)

    @jax.jit  # one program, not one an operation
    def both(images, kernel, bias):
        maps = FeatureMaps(tiled_convolution(images, kernel, tile), bias, tile)
        expected = plain(images, kernel) + bias.reshape(1, 1, 1, -1)
        return (maps.image(), maps.max_pool()), (expected, max_pool(expected))

    for got, wanted in zip(*both(images, kernel, bias), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("height", "width", "channels", "k", "filters", "tile", "batch"),
    [
        *((*case, 3) for case in CASES),
        *((*case, 4) for case in CASES[:2]),
    ],  # rows that are multiples of one, two and four
)
def test_gradients_are_those_of_the_plain_operations(height, width, channels, k, filters, tile, batch):
    images, kernel, bias = draw(height, width, channels, k, filters, batch)
    weight = jax.random.normal(jax.random.key(9), jax.eval_shape(max_pool, plain(images, kernel)).shape)

    def ours(images, kernel, bias):
        return (FeatureMaps(tiled_convolution(images, kernel, tile), bias, tile).max_pool() * weight).sum()

    def reference(images, kernel, bias):
        values = plain(images, kernel) + bias.reshape(1, 1, 1, -1)
        pooled = lax.reduce_window(values, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return (pooled * weight).sum()

    both = jax.jit(lambda *given: [jax.grad(of, (0, 1, 2))(*given) for of in (ours, reference)])
    for got, wanted in zip(*both(images, kernel, bias), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_ties_share_the_gradient():
    images, kernel = jnp.ones((1, 8, 8, 1)), jnp.ones((1, 1, 1, 1))  # every window is a four-fold tie
    gradient = jax.grad(lambda x: FeatureMaps(tiled_convolution(x, kernel, 4), None, 4).max_pool().sum())(images)
    np.testing.assert_array_equal(gradient, np.full((1, 8, 8, 1), 0.25))


def test_gradients_have_the_type_of_the_images():
    for dtype in (jnp.bfloat16, jnp.float32):
        images, kernel = jnp.ones((1, 8, 8, 1), dtype), jnp.ones((1, 1, 1, 1), dtype)
        maps = lambda x, kernel=kernel: FeatureMaps(tiled_convolution(x, kernel, 4), None, 4)
        assert jax.grad(lambda x, maps=maps: maps(x).max_pool().sum().astype(jnp.float32))(images).dtype == dtype


@pytest.mark.slow
def test_lenet_trains_where_numbers_are_double():
    """Parameters and losses are float32 there too, so the steps are those of single precision."""

    def loss_after_a_step():
        network = Classifier.create(build("lenet5", 10), jax.random.key(0), (32, 32, 1))
        images = jax.random.uniform(jax.random.key(1), (8, 32, 32, 1), jnp.float32)
        rule = optimiser("sgd", 0.1)
        method = training(network, images, jnp.arange(8), loss=Partial(cross_entropy), optimizer=rule, batch_size=4)
        result = run(method, jax.random.key(2), 2, chunk=2)
        assert {leaf.dtype for leaf in jax.tree.leaves(result.state.variables)} == {jnp.dtype(jnp.float32)}
        return result.metrics["loss"]

    with jax.enable_x64(True):
        assert np.isfinite(loss_after_a_step()).all()


def test_map_sees_channels_last_and_keeps_the_layout():
    images, kernel, bias = draw(14, 14, 6, 5, 16)
    maps = FeatureMaps(tiled_convolution(images, kernel, 2), bias, 2)
    values = plain(images, kernel) + bias.reshape(1, 1, 1, -1)
    normalise = lambda y: (
        (y - y.mean(tuple(range(y.ndim - 1)), keepdims=True)) * jnp.arange(1.0, 17).reshape((1,) * (y.ndim - 1) + (-1,))
    )
    np.testing.assert_allclose(maps.map(normalise).image(), normalise(values), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(maps.map(normalise).max_pool(), max_pool(normalise(values)), rtol=1e-5, atol=1e-4)


def test_one_kernel_per_member_under_vmap():
    images, _, _ = draw(14, 14, 6, 5, 16)
    kernels = jax.random.normal(jax.random.key(0), (3, 5, 5, 6, 16))
    run = lambda kernel: FeatureMaps(tiled_convolution(images, kernel, 2), None, 2).image()
    np.testing.assert_allclose(jax.vmap(run)(kernels), jnp.stack([plain(images, k) for k in kernels]), atol=5e-5)


def test_which_tile():
    assert tile_size((1, 32, 32, 1), (5, 5, 1, 6)) == 4
    assert tile_size((1, 32, 32, 1), (5, 5, 1, 32)) == 2  # many filters
    assert tile_size((1, 14, 14, 6), (5, 5, 6, 16)) == 2
    assert tile_size((1, 14, 14, 32), (5, 5, 32, 16)) == 0  # too many channels
    assert tile_size((1, 13, 14, 1), (5, 5, 1, 6)) == 0  # odd output
    with convolution("lax"):
        assert tile_size((1, 32, 32, 1), (5, 5, 1, 6)) == 0


@pytest.mark.parametrize("size", [32, 13])
def test_the_layer_is_a_convolution(size):
    images, _, _ = draw(size, size, 1, 5, 6)
    layer = PooledConv(6, (5, 5))
    variables = layer.init(jax.random.key(0), images)
    assert jax.tree.map(jnp.shape, variables["params"]) == {"kernel": (5, 5, 1, 6), "bias": (6,)}
    expected = plain(images, variables["params"]["kernel"])
    np.testing.assert_allclose(layer.apply(variables, images).image(), expected, atol=2e-5)
    with convolution("lax"):
        np.testing.assert_allclose(layer.apply(variables, images).image(), expected, atol=1e-6)
