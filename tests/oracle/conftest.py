"""A small victim, another network, and rows to ask."""

import jax
import numpy as np
import pytest

from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP

SHAPE = (5, 4, 2)


def sharpened(classifier, by):
    """The classifier with logits `by` times as large."""
    params = classifier.variables["params"]
    return classifier.replace(variables={"params": {**params, "head": jax.tree.map(lambda x: by * x, params["head"])}})


@pytest.fixture(scope="session")
def victim():
    return sharpened(Classifier.create(MLP(4, (8,)), jax.random.key(1), SHAPE), 4.0)


@pytest.fixture(scope="session")
def other():
    return sharpened(Classifier.create(MLP(4, (6,)), jax.random.key(2), SHAPE), 4.0)


@pytest.fixture(scope="session")
def rows():
    return np.random.default_rng(3).uniform(size=(9, *SHAPE)).astype(np.float32)
