"""Training one classifier from labels, on images that stay on the device."""

import functools
from typing import Any

import jax
from jax.tree_util import Partial

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import GREY, classifier, random_images, random_labels
from dfke_jax.core import Method
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser, training

RATE = 1e-3


def supervised(network: str, pool: int, batch: int, shape: tuple[int, int, int] = GREY) -> Method:
    """Cross-entropy training on a pool of random images, with Adam."""
    return training(
        classifier(network, shape=shape),
        random_images(pool, shape),
        random_labels(pool),
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", RATE),
        batch_size=batch,
    )


def row(batch: int, pool: int, length: int, plain_length: int, peer_steps: int, blocks: int = 11) -> Row:
    """Training of LeNet-5: `length` steps per chunk, `plain_length` with the plain convolution."""
    made = supervised("lenet5", pool, batch)
    key = jax.random.key(5)

    def peer() -> Any:
        from benchmarks import peers

        images, labels = random_images(pool), random_labels(pool)
        return peers.ClassifierTraining([peers.LeNet5()], images, labels, batch, RATE, peer_steps)

    contenders = {
        "ours": Program(made, key, units=1, length=length),
        "lax_scan": Program(made, key, units=1, length=plain_length, convolution="lax"),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"network": "lenet5", "batch": batch, "pool": pool, "learning_rate": RATE}
    return Row("steps/s", params, contenders, also={"images/s": batch}, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {"classifier_training/lenet5/8": functools.partial(row, 8, 100, 4, 2, 2, 7)}
    return {
        "classifier_training/lenet5/64": functools.partial(row, 64, 10_000, 50, 10, 20),
        "classifier_training/lenet5/256": functools.partial(row, 256, 10_000, 20, 4, 8),
    }
