"""A small victim, and what it answers."""

import jax
import jax.numpy as jnp
import pytest
from jax.tree_util import Partial

from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.oracle import Explained

SHAPE = (8, 8, 1)


def probabilities(victim, rows):
    return jax.nn.softmax(4 * victim(rows))


def labels(victim, rows):
    return jnp.argmax(victim(rows), -1).astype(jnp.int32)


def explained(victim, rows):
    def one(row):
        return probabilities(victim, row[None])[0]

    return Explained(probabilities(victim, rows), jax.vmap(jax.jacrev(one))(rows))


@pytest.fixture(scope="session")
def classifier():
    """Seed -> a network of three classes on 8×8 images."""

    def make(seed, batch_norm=False, units=(12,)):
        return Classifier.create(MLP(3, units, batch_norm=batch_norm), jax.random.key(seed), SHAPE)

    return make


@pytest.fixture(scope="session")
def oracles():
    """Name -> victim -> oracle, a pytree."""
    return {
        name: lambda victim, answer=answer: Partial(answer, victim)
        for name, answer in (("probabilities", probabilities), ("labels", labels), ("explained", explained))
    }
