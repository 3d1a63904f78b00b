"""NT-Xent against NumPy, and contrastive training of an encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core, data, nn
from dfke_jax.core import InputError
from dfke_jax.nn.contrastive import Projection
from dfke_jax.nn.mlp import MLP

SHAPE = (4, 4, 1)
IMAGES = jax.random.uniform(jax.random.key(1), (24, *SHAPE))
ENCODER = nn.Classifier.create(MLP(3, (16, 8)), jax.random.key(2), SHAPE)
VIEWS = data.gaussian_noise(0.1)


def training(images=IMAGES, encoder=ENCODER, **changes):
    settings = {"augment": VIEWS, "optimizer": nn.optimiser("adam", 1e-2), "batch_size": 12, **changes}
    return nn.contrastive_training(encoder, images, **settings)


@jax.jit
def step(method, key, state):
    return method.step(key, state)


def naive(first, second, temperature):
    """Equation 1 of the paper, row by row, in float64."""
    z = np.concatenate([first, second]).astype(np.float64)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses = []
    for i in range(len(z)):
        partner = (i + len(first)) % len(z)
        others = [np.exp(z[i] @ z[k] / temperature) for k in range(len(z)) if k != i]
        losses.append(-np.log(np.exp(z[i] @ z[partner] / temperature) / np.sum(others)))
    return (np.array(losses[: len(first)]) + losses[len(first) :]) / 2


xent = jax.jit(nn.nt_xent)


def test_nt_xent_is_the_formula():
    rng = np.random.default_rng(0)
    for pairs, width, temperature in ((7, 5, 0.1), (2, 1, 0.5)):
        first, second = rng.normal(size=(2, pairs, width)) * [[[3.0]], [[0.2]]]
        found = xent(jnp.asarray(first), jnp.asarray(second), temperature)
        np.testing.assert_allclose(found, naive(first, second, temperature), rtol=2e-4, atol=1e-5)
        swapped = xent(jnp.asarray(second), jnp.asarray(first), temperature)
        np.testing.assert_allclose(found, swapped, rtol=1e-5, atol=1e-6)


def test_nt_xent_bounds():
    same = jnp.ones((4, 3))
    np.testing.assert_allclose(xent(same, same), np.full(4, np.log(7)), rtol=1e-5)
    apart = jnp.eye(4)
    np.testing.assert_allclose(xent(apart, apart, 1e-3), np.zeros(4), atol=1e-5)
    # partners are orthogonal, strangers coincide: 1/τ + log(…), where e^(1/τ) has no float
    assert np.isfinite(xent(apart, apart[::-1], 1e-3)).all()
    rows = jnp.zeros((3, 2)).at[0, 0].set(1.0)
    value, gradient = jax.value_and_grad(lambda x: xent(x, rows).mean())(rows)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[1:], 0)


@pytest.mark.parametrize(
    ("first", "second", "temperature", "message"),
    [
        ((3, 2), (3, 3), 0.5, r"two arrays \(B, D\) with B >= 2"),
        ((1, 2), (1, 2), 0.5, "B >= 2"),
        ((3, 2, 1), (3, 2, 1), 0.5, "two arrays"),
        ((3, 2), (3, 2), 0.0, "temperature must be positive"),
    ],
)
def test_nt_xent_refuses(first, second, temperature, message):
    with pytest.raises(InputError, match=message):
        nn.nt_xent(jnp.ones(first), jnp.ones(second), temperature)


@pytest.mark.slow
def test_training_brings_views_together_and_leaves_the_last_layer():
    method = training()
    first = method.init(jax.random.fold_in(jax.random.key(3), 0))
    found = core.run(method, jax.random.key(3), 60, chunk=60)
    loss = found.metrics["loss"]
    assert loss[-5:].mean() < loss[:5].mean() - 0.3
    encoder = nn.trained(ENCODER, found.state)
    assert encoder.features(IMAGES).shape == (24, 8)
    np.testing.assert_array_equal(nn.representation(encoder)(IMAGES), encoder.features(IMAGES))
    assert first.projection["hidden"]["kernel"].shape == (8, 8)
    assert first.projection["output"]["kernel"].shape == (8, 64)
    one, _ = step(method, jax.random.key(4), first)
    np.testing.assert_array_equal(
        one.variables["params"]["head"]["kernel"], first.variables["params"]["head"]["kernel"]
    )
    assert not np.allclose(one.variables["params"]["dense1"]["kernel"], first.variables["params"]["dense1"]["kernel"])


@pytest.mark.slow
def test_loss_of_a_step_is_that_of_its_two_views():
    method = training(batch_size=24)
    state, key = method.init(jax.random.key(5)), jax.random.key(6)
    _, metrics = step(method, key, state)
    row_key, *view_keys, _ = jax.random.split(key, 4)
    rows = jax.random.choice(row_key, 24, (24,), replace=False)
    assert sorted(rows.tolist()) == list(range(24))
    encoder = nn.trained(ENCODER, state)
    views = [VIEWS(view_key, IMAGES[rows]) for view_key in view_keys]
    assert not np.allclose(*views)
    z = [Projection(64).apply({"params": state.projection}, encoder.features(view)) for view in views]
    np.testing.assert_allclose(metrics["loss"], naive(*map(np.asarray, z), 0.5).mean(), rtol=1e-4)


def test_fine_tuning_begins_from_the_encoder():
    state = training(fine_tune=True).init(jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, state.variables, ENCODER.variables)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, r"batch_size must lie in \[2, 24\]"),
        ({"batch_size": 25}, "the number of images, got 25"),
        ({"projection": 0}, "projection must be at least 1"),
    ],
)
def test_training_refuses(changes, message):
    with pytest.raises(InputError, match=message):
        training(**changes)
