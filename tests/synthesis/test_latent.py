"""Latent inversion against a loop of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dfke_jax.core.errors import InputError
from dfke_jax.synthesis.latent import invert

START = {"latents": jnp.array([1.0, 1.0]), "generator": jnp.array(2.0)}
TARGET = np.array([1.0, 2.0])


def decode(optimised):
    return (optimised["latents"] * optimised["generator"]).reshape(2, 1, 1, 1)


def objective(key, images, optimised):
    del key
    loss = jnp.sum(jnp.square(images.ravel() - TARGET))
    return loss, {"first": images[0, 0, 0, 0]}


def test_the_best_iterate_is_kept_and_gradients_add_up():
    rates = {"latents": 0.2, "generator": 0.3}  # too large: the loss falls twice and rises again
    rules = {name: optax.sgd(rate) for name, rate in rates.items()}
    found = invert(jax.random.key(0), decode, objective, START, steps=4, optimizers=rules)
    z, w, total, seen = np.array([1.0, 1.0]), 2.0, np.zeros(3), []
    for _ in range(4):
        apart = 2 * (z * w - TARGET)
        seen.append((np.sum(np.square(z * w - TARGET)), z * w))
        gradient = np.array([*(apart * w), np.sum(apart * z)])
        total += gradient
        z, w = z - rates["latents"] * gradient[:2], w - rates["generator"] * gradient[2]
    losses = [loss for loss, _ in seen]
    best = int(np.argmin(losses))
    assert 0 < best < 3, "neither end would show what is kept"
    np.testing.assert_allclose(found.loss, losses[best], rtol=1e-5)
    np.testing.assert_allclose(found.images.ravel(), seen[best][1], rtol=1e-5)
    np.testing.assert_allclose(found.beside["first"], seen[best][1][0], rtol=1e-5)
    np.testing.assert_allclose(found.last["first"], seen[-1][1][0], rtol=1e-4)
    np.testing.assert_allclose(found.optimised["latents"], z, rtol=1e-4)
    np.testing.assert_allclose(found.optimised["generator"], w, rtol=1e-4)
    np.testing.assert_allclose([*found.gradient["latents"], found.gradient["generator"]], total, rtol=1e-4)


def test_an_optimiser_goes_on_where_it_was():
    rules = {name: optax.adam(0.1) for name in START}
    whole = invert(jax.random.key(0), decode, objective, START, steps=3, optimizers=rules)
    first = invert(jax.random.key(0), decode, objective, START, steps=2, optimizers=rules)
    rest = invert(
        jax.random.key(0), decode, objective, first.optimised, steps=1, optimizers=rules,
        optimizer_states=first.optimizer_states,
    )  # fmt: skip
    for a, b in zip(jax.tree.leaves(whole.optimised), jax.tree.leaves(rest.optimised), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bad_input():
    rules = {"latents": optax.sgd(0.1)}
    with pytest.raises(InputError, match="decode the start"):
        invert(jax.random.key(0), decode, objective, START, steps=0, optimizers=rules)
    with pytest.raises(InputError, match=r"optimisers for \['latents'\], but \['generator', 'latents'\]"):
        invert(jax.random.key(0), decode, objective, START, steps=1, optimizers=rules)
