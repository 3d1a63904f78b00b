"""Built-in victims: a small network that is trained at once."""

import functools
from typing import Any

import jax
from jax.tree_util import Partial

from dfke_jax import data
from dfke_jax.core.loop import run
from dfke_jax.models import directories
from dfke_jax.models.declared import Declared
from dfke_jax.models.opened import Found
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.named import network
from dfke_jax.nn.training import optimiser, trained, training


def open(where: Any, said: Declared) -> Found:
    """``digits``: the declared network (mlp_small), trained on the bundled digits."""
    said.only("network", "size", "fit", "mean", "std", kind="a built-in victim")
    classifier = on_digits(said.network or "mlp_small")
    directories.check(classifier, said, "digits")
    return Found("a built-in victim", "digits", classifier.input_shape, traced=classifier)


@functools.lru_cache(maxsize=4)
def on_digits(name: str, steps: int = 600) -> Classifier:
    """A network trained on the bundled digits; the same one every time."""
    digits = data.load("digits")
    images, labels = digits.train.on_device()
    classifier = network(name, digits.num_classes, digits.shape)
    rule = optimiser("adam", 2e-3, steps)
    method = training(
        classifier, images, labels, loss=Partial(cross_entropy), optimizer=rule, batch_size=128
    )
    return trained(classifier, run(method, jax.random.key(0), steps).state)


__all__ = ["on_digits", "open"]
