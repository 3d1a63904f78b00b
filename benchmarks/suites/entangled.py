"""The soft nearest neighbour loss on activations of a convolution, which is what entangled watermarks spend their time on."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from benchmarks.harness import Peer, Program, Row, Rows
from dfke_jax.core import Method, Static, method
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.nn import soft_nearest_neighbour_loss

TEMPERATURE = 100.0


def _by_differences(features: Array, labels: Array) -> Array:
    """The same loss from all differences (B, B, D): what the product saves."""
    rows = features.reshape(features.shape[0], -1)
    distances = jnp.square(rows[:, None] - rows[None]).sum(-1)
    closeness = jnp.where(jnp.eye(len(rows), dtype=bool), -jnp.inf, -distances / TEMPERATURE)
    same = labels[:, None] == labels[None]
    among = jax.nn.logsumexp(jnp.where(same, closeness, -jnp.inf), 1)
    return (jax.nn.logsumexp(closeness, 1) - among).mean()


def _init(features: Array, labels: Array, form: Static, key: Key) -> Array:
    return features


def _step(features: Array, labels: Array, form: Static, key: Key, state: Array) -> tuple[Array, Metrics]:
    loss: Any = (
        _by_differences
        if form.value == "differences"
        else functools.partial(soft_nearest_neighbour_loss, temperature=TEMPERATURE)
    )
    value, gradient = jax.value_and_grad(loss)(state, labels)
    return state + 1e-3 * gradient, {"loss": value}


def ascent(batch: int, shape: tuple[int, ...], form: Literal["product", "differences"] = "product") -> Method:
    """Steps up the loss of random activations after a ReLU, half of them marked."""
    features = jax.nn.relu(jax.random.normal(jax.random.key(3), (batch, *shape)))
    return method(_init, _step, features, jnp.arange(batch) < batch // 2, Static(form))


def row(batch: int, shape: tuple[int, ...], blocks: int = 11) -> Row:
    """Loss and gradient on activations (batch, *shape)."""
    made, key = ascent(batch, shape), jax.random.key(4)

    def peer() -> Any:
        from benchmarks import peers_entangled

        start = made.init(key)
        return peers_entangled.SoftNearestNeighbour(start, jnp.arange(batch) < batch // 2, TEMPERATURE)

    contenders = {
        "ours": Program(made, key, units=1, length=2),
        "differences": Program(ascent(batch, shape, "differences"), key, units=1),
        "pytorch": Peer(peer, units=1),
    }
    return Row("gradients/s", {"batch": batch, "shape": list(shape)}, contenders, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {"soft_nearest_neighbour/8": functools.partial(row, 8, (4, 4, 3), 7)}
    return {
        "soft_nearest_neighbour/64": functools.partial(row, 64, (28, 28, 32)),
        "soft_nearest_neighbour/128": functools.partial(row, 128, (28, 28, 32), 7),
    }
