"""Training many classifiers at once: seeds, shadow models, null models."""

import functools
from typing import Any

import jax

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import random_images, random_labels
from benchmarks.suites.training import RATE, supervised
from dfke_jax.core import device_mesh, population


def row(members: int, batch: int, pool: int, length: int, plain_length: int, peer_steps: int, blocks: int = 11) -> Row:
    """Cross-entropy training of `members` LeNets, each with rows of its own from one pool."""
    single = supervised("lenet5", pool, batch)
    keys = jax.random.split(jax.random.key(6), members)

    mesh = device_mesh(models=jax.device_count())
    spreads = jax.device_count() > 1 and members % jax.device_count() == 0

    def program(strategy: Any, length: int, spread: bool = False, **options: Any) -> Program:
        made = population(single, strategy=strategy, mesh=mesh if spread else None)
        return Program(made, keys, units=members, length=length, elementary=single, repeats=members, **options)

    def peer() -> Any:
        from benchmarks import peers

        networks = [peers.LeNet5() for _ in range(members)]
        images, labels = random_images(pool), random_labels(pool)
        return peers.ClassifierTraining(networks, images, labels, batch, RATE, peer_steps)

    contenders = {
        "ours": program("auto", length, spread=spreads),
        "ours_one_device": program("auto", length),
        "lax_vmap": program("vmap", plain_length, convolution="lax"),
        "pytorch": Peer(peer, units=members * peer_steps),
    }
    params = {"network": "lenet5", "members": members, "batch": batch, "pool": pool, "learning_rate": RATE}
    return Row("model-steps/s", params, contenders, also={"images/s": batch}, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {"population/lenet5/2": functools.partial(row, 2, 8, 100, 2, 1, 1, 7)}
    return {
        "population/lenet5/8": functools.partial(row, 8, 64, 10_000, 8, 1, 4),
        "population/lenet5/64": functools.partial(row, 64, 64, 10_000, 2, 1, 1, 7),
    }


def gpu_rows() -> Rows:
    """The same, with members for an accelerator."""
    return {"population/lenet5/256": functools.partial(row, 256, 64, 10_000, 20, 1, 1)}
