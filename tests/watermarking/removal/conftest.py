"""A small network with a mark of abstract triggers, on digits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dfke_jax import core, data
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.mlp import MLP
from dfke_jax.nn.training import optimiser, trained, training
from dfke_jax.watermarking import TriggerSet
from dfke_jax.watermarking.removal.common import LOSS
from dfke_jax.watermarking.removal.overwriting import abstract_triggers


class Marked(NamedTuple):
    """A marked network, its triggers, and digits for whoever attacks it."""

    network: Classifier
    triggers: TriggerSet
    images: jax.Array
    labels: jax.Array
    test_images: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def marked():
    """64-32-16-10 with batch normalisation; some running statistics are away from zero."""
    digits = data.load("digits")
    network = Classifier.create(MLP(10, (32, 16), batch_norm=True), jax.random.key(0), digits.shape)
    triggers = abstract_triggers(jax.random.key(1), network, 20)
    images, labels = jnp.asarray(digits.train.images), jnp.asarray(digits.train.labels)
    method = training(
        network,
        images,
        labels,
        loss=LOSS,
        optimizer=optimiser("adam", 1e-2, 600),
        batch_size=64,
        companions=(triggers.images, triggers.labels),
        companions_per_batch=8,
    )
    network = trained(network, core.run(method, jax.random.key(2), 600).state)
    return Marked(network, triggers, images, labels, digits.test.images, digits.test.labels)
