"""A small network with a mark of abstract triggers, on digits."""

import functools
import inspect
from collections.abc import Mapping
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
from dfke_jax.watermarking.removal import REMOVALS, CleanseSettings, TrainingSettings, made_elsewhere, removal_matrix
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


SETTINGS = TrainingSettings(steps=300, batch_size=32, learning_rate=0.02, momentum=0.0, weight_decay=1e-3)
ADAM = TrainingSettings(steps=300, batch_size=64, learning_rate=1e-2, optimizer="adam", cosine=True)
OWN = {
    "high_rate_fine_tuning": {
        "settings": TrainingSettings(steps=300, learning_rate=0.5, weight_decay=5e-3, cosine=True)
    },
    "soft_retraining": {"settings": ADAM},
    "hard_retraining": {"settings": ADAM},
    "adversarial_fine_tuning": {"epsilon": 0.15},
    "overwriting": {"count": 20, "companions_per_batch": 8, "settings": TrainingSettings(steps=300, batch_size=64)},
    "transfer_learning": {"num_classes": 12},
    "neural_cleanse": {"cleanse": CleanseSettings(rounds=2, batches=1, batch_size=4)},
    "neural_cleanse_patching": {"cleanse": CleanseSettings(rounds=2, batches=1, batch_size=4)},
    "fine_pruning": {"layer": "dense1"},
}


class Rows(Mapping):
    """attack -> row, of every attack on the one network, made when it is asked for; those that train run for 300 steps."""

    def __init__(self, marked):
        self.marked, self.made = marked, {}

    def __iter__(self):
        return iter((*REMOVALS, "nothing"))

    def __len__(self):
        return len(REMOVALS) + 1

    def __getitem__(self, name):
        if name not in self.made:
            of = self.marked
            (self.made[name],) = removal_matrix(
                jax.random.key(5),
                {"abstract": (of.network, of.triggers)},
                {name: self.attack(name)},
                of.images,
                of.labels,
                of.test_images,
                of.test_labels,
                points=2,
            )
        return self.made[name]

    def attack(self, name):
        if name == "nothing":
            return made_elsewhere(lambda key, marked, images, labels: marked, "stolen", "a copy")
        attack = REMOVALS[name]
        trains = "settings" in inspect.signature(attack).parameters
        return functools.partial(attack, **{**({"settings": SETTINGS} if trains else {}), **OWN.get(name, {})})


@pytest.fixture(scope="session")
def matrix(marked):
    """See `Rows`."""
    return Rows(marked)
