"""Gradients from differences against closed forms, a naive loop, and simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dfke_jax.core import device_mesh
from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.synthesis.zeroth_order import (
    Differences,
    cache_chunk,
    estimate,
    forward_difference,
    in_chunks,
    perturbed_rows,
    precise,
    unit_directions,
)

KEY = jax.random.key(31)
SHAPE = (5, 3, 2, 2)
SIZE = 12
SLOPE = jax.random.normal(jax.random.key(32), SHAPE[1:])


def linear(x):
    return jnp.sum(x * SLOPE[None], (1, 2, 3))


def quadratic(x):
    return linear(x) + 3 * jnp.sum(jnp.square(x), (1, 2, 3))


X = jax.random.normal(jax.random.key(33), SHAPE)


def cosines(a, b):
    a, b = (np.asarray(v, np.float64).reshape(len(v), -1) for v in (a, b))
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("central", [False, True])
def test_all_orthogonal_directions_give_the_gradient_of_a_linear_function(central):
    found = forward_difference(KEY, linear, X, epsilon=0.5, directions=SIZE, orthogonal=True, central=central)
    np.testing.assert_allclose(found.gradient, np.broadcast_to(SLOPE, SHAPE), atol=1e-4)
    assert found.losses.shape == (2 * SIZE if central else SIZE + 1, 5)


def test_central_differences_are_exact_for_quadratic_functions_and_forward_ones_are_not():
    gradient = np.asarray(SLOPE[None] + 6 * X)
    options = {"epsilon": 0.5, "directions": SIZE, "orthogonal": True}
    central = forward_difference(KEY, quadratic, X, central=True, **options).gradient
    np.testing.assert_allclose(central, gradient, atol=2e-4)
    forward = forward_difference(KEY, quadratic, X, **options).gradient
    # (f(x + εu) − f(x))/ε = u·∇f + 3ε, along every one of the directions
    offset = 3 * 0.5 * unit_directions(KEY, SHAPE, Differences(0.5, SIZE, True)).sum(0)
    np.testing.assert_allclose(forward, gradient + offset, atol=5e-4)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_the_estimate_of_a_linear_function_is_unbiased(orthogonal):
    wide = jnp.broadcast_to(X[:1], (20_000, *SHAPE[1:]))
    found = forward_difference(KEY, linear, wide, epsilon=0.5, directions=3, orthogonal=orthogonal).gradient
    # one component has a variance below (d/m)·|slope|², so the mean of 20,000 is off by less than five of its errors
    error = 5 * np.sqrt(SIZE / 3 * float(jnp.sum(SLOPE**2)) / 20_000)
    assert np.abs(np.asarray(found.mean(0)) - np.asarray(SLOPE)).max() < error
    assert np.abs(np.asarray(found[0]) - np.asarray(SLOPE)).max() > 10 * error, "a single estimate is far off"


def test_orthogonal_directions_have_a_smaller_variance():
    wide = jnp.broadcast_to(X[:1], (1500, *SHAPE[1:]))
    errors = []
    for orthogonal in (False, True):
        found = forward_difference(KEY, linear, wide, epsilon=0.5, directions=6, orthogonal=orthogonal).gradient
        errors.append(float(jnp.mean(jnp.sum((found - SLOPE[None]) ** 2, (1, 2, 3)))))
    square = float(jnp.sum(SLOPE**2))
    # E|g|² − |∇f|²: (d/m)²·[m/d + m(m−1)/d²] − 1 = (d − 1)/m for independent, d/m − 1 for orthonormal directions
    np.testing.assert_allclose(errors, [square * (SIZE - 1) / 6, square * (SIZE / 6 - 1)], rtol=0.1)


@pytest.mark.parametrize(("directions", "size"), [(1, 64), (8, 128)])
def test_the_cosine_with_the_gradient_is_about_the_root_of_m_over_d(directions, size):
    slope = jax.random.normal(jax.random.key(34), (size,))
    x = jnp.zeros((400, size))
    found = forward_difference(
        KEY, lambda x: x @ slope, x, epsilon=1.0, directions=directions, orthogonal=True
    ).gradient
    squares = cosines(found, np.broadcast_to(slope, x.shape)) ** 2
    # the squared cosine is Beta(m/2, (d − m)/2): mean m/d
    deviation = np.sqrt(2 * directions * (size - directions) / (size**2 * (size + 2)) / 400)
    assert abs(squares.mean() - directions / size) < 5 * deviation


@pytest.mark.slow
def test_an_estimate_of_a_network_points_along_its_gradient():
    network = Classifier.create(MLP(3, (16,)), jax.random.key(35), (6, 6, 1))
    x = jax.random.uniform(KEY, (60, 6, 6, 1))
    loss = lambda x: jax.nn.logsumexp(4 * network(x), -1)
    exact = jax.grad(lambda x: loss(x).sum())(x)
    found = forward_difference(KEY, loss, x, directions=9, orthogonal=True, central=True, epsilon=1e-2).gradient
    assert abs(cosines(found, exact).mean() - np.sqrt(9 / 36)) < 0.05


def test_against_a_naive_loop():
    differences = Differences(0.3, 2)
    directions = np.asarray(unit_directions(KEY, SHAPE, differences), np.float64)
    np.testing.assert_allclose((directions**2).sum((2, 3, 4)), 1, rtol=1e-5)
    f = lambda x: float(np.sum(np.asarray(SLOPE) * x) + 3 * np.sum(np.square(x)))
    expected = np.zeros(SHAPE)
    for b, x in enumerate(np.asarray(X, np.float64)):
        for u in directions[:, b]:
            expected[b] += SIZE / 2 * (f(x + 0.3 * u) - f(x)) / 0.3 * u
    found = forward_difference(KEY, quadratic, X, epsilon=0.3, directions=2)
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.losses[0], quadratic(X), rtol=1e-5)
    half = forward_difference(KEY, quadratic, X, epsilon=0.3, directions=2, scale=SIZE / 2).gradient
    np.testing.assert_allclose(half, found.gradient / 2, rtol=1e-5)


@pytest.mark.parametrize(
    "differences",
    [Differences(0.1, 3), Differences(0.1, 3, orthogonal=True), Differences(0.1, 2, central=True)],
    ids=["independent", "orthogonal", "central"],
)
def test_directions_are_drawn_again_from_the_key(differences):
    """Two programs that share nothing but the key make the estimate of one."""
    rows = jax.jit(lambda key, x: perturbed_rows(key, x, differences))(KEY, X)
    assert rows.shape == (differences.rows_per_sample * 5, *SHAPE[1:])
    later = jax.jit(lambda key, x, losses: estimate(key, x, losses, differences))(KEY, X, quadratic(rows))
    at_once = forward_difference(
        KEY, quadratic, X, epsilon=0.1, directions=differences.directions, orthogonal=differences.orthogonal,
        central=differences.central,
    )  # fmt: skip
    np.testing.assert_allclose(later, at_once.gradient, atol=2e-3)
    other = estimate(jax.random.key(1), X, quadratic(rows), differences)
    assert np.abs(np.asarray(other - later)).max() > 0.1, "with another key it is another estimate"


def test_a_direction_does_not_depend_on_how_many_there_are():
    few, many = (unit_directions(KEY, SHAPE, Differences(directions=m)) for m in (2, 5))
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)


def test_orthogonal_directions_are_uniform_too():
    drawn = np.asarray(unit_directions(KEY, (4000, 3), Differences(directions=3, orthogonal=True)))
    np.testing.assert_allclose(np.einsum("ibd,jbd->bij", drawn, drawn), np.tile(np.eye(3), (4000, 1, 1)), atol=1e-5)
    assert np.abs(drawn.mean(1)).max() < 5 / np.sqrt(3 * 4000)
    np.testing.assert_allclose((drawn**2).mean(1), 1 / 3, atol=0.03)


@pytest.mark.parametrize("chunk", [None, 1, 4, 5, 7, 1000])
def test_chunks_change_nothing(chunk):
    found = in_chunks(lambda x: {"loss": quadratic(x), "x": x}, jnp.tile(X, (3, 1, 1, 1)), chunk)
    np.testing.assert_allclose(found["loss"], np.tile(quadratic(X), 3), rtol=1e-5)
    np.testing.assert_array_equal(found["x"], np.tile(X, (3, 1, 1, 1)))
    chunked = forward_difference(KEY, quadratic, X, epsilon=0.1, directions=2, chunk=chunk).gradient
    np.testing.assert_allclose(
        chunked, forward_difference(KEY, quadratic, X, epsilon=0.1, directions=2).gradient, atol=2e-3
    )


def test_every_device_has_chunks_of_its_own_rows(four):
    rows = jnp.arange(24.0).reshape(12, 2)
    with jax.set_mesh(device_mesh(devices=four)):
        assert (cache_chunk(1792), cache_chunk(640)) == (64, 40)
        found = jax.jit(lambda rows: in_chunks(lambda x: {"sum": x.sum(-1), "x": x}, rows, 2))(rows)
    np.testing.assert_array_equal(found["x"], rows)
    np.testing.assert_array_equal(found["sum"], rows.sum(-1))


def test_products_are_evaluated_precisely():
    product = lambda x: x @ jnp.ones((SIZE, 1))
    text = str(jax.make_jaxpr(precise(product))(jnp.ones((2, SIZE))))
    assert "HIGHEST" in text
    assert "HIGHEST" not in str(jax.make_jaxpr(product)(jnp.ones((2, SIZE))))
    network = Classifier.create(MLP(3, (4,)), jax.random.key(1), (6, 6, 1))
    oracle = precise(network)
    assert isinstance(oracle, Partial)
    assert len(jax.tree.leaves(oracle)) == len(jax.tree.leaves(network)), "parameters remain arguments"
    x = jnp.ones((2, 6, 6, 1))
    np.testing.assert_allclose(oracle(x), network(x), rtol=1e-6)


def test_bad_input():
    with pytest.raises(InputError, match="epsilon must be positive"):
        Differences(epsilon=0.0)
    with pytest.raises(InputError, match="at least one direction"):
        Differences(directions=0)
    with pytest.raises(InputError, match="13 directions cannot be orthogonal in 12"):
        forward_difference(KEY, linear, X, directions=13, orthogonal=True)
    with pytest.raises(InputError, match="10 perturbed rows, got losses"):
        estimate(KEY, X, jnp.zeros(5), Differences())
    with pytest.raises(InputError, match="one loss a row"):
        forward_difference(KEY, lambda x: x, X)
    with pytest.raises(InputError, match="at least one more axis"):
        perturbed_rows(KEY, jnp.zeros(3), Differences())
    with pytest.raises(InputError, match="at least one row"):
        in_chunks(linear, X, 0)


def test_sizes_of_chunks_for_the_cache():
    """The largest divisor from 32 to 64, else 64; nothing is divided up to 128 rows."""
    found = [cache_chunk(count) for count in (1, 128, 129, 131, 195, 2077, 2144)]
    assert found == [None, None, 43, 64, 39, 64, 32]
