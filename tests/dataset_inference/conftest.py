"""A small network with weights in plain sight, and images for it."""

import jax
import numpy as np
import pytest

from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP

SHAPE = (4, 4, 1)


@pytest.fixture(scope="session")
def network():
    """16-12-4, with weights large enough that classes are near."""
    made = Classifier.create(MLP(4, (12,)), jax.random.key(3), SHAPE)
    return made.replace(variables=jax.tree.map(lambda leaf: 1.5 * leaf, made.variables))


@pytest.fixture(scope="session")
def by_hand(network):
    """The same function in NumPy, float64: images (B, 16) -> logits, and the pieces."""
    params = network.variables["params"]
    w1, b1, w2, b2 = (
        np.asarray(params[layer][part], np.float64) for layer in ("dense1", "head") for part in ("kernel", "bias")
    )

    def forward(x):
        return np.maximum(x @ w1 + b1, 0) @ w2 + b2

    def gradient(x, target):
        """∂(f_target − max f)/∂x of one row."""
        hidden = x @ w1 + b1
        logits = np.maximum(hidden, 0) @ w2 + b2
        out = np.zeros(len(b2))
        out[target] += 1
        out[logits.argmax()] -= 1
        return w1 @ ((hidden > 0) * (w2 @ out))

    return forward, gradient


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(4).uniform(0, 1, (7, *SHAPE)).astype(np.float32)
