"""Watermarks: marking a network by a backdoor, and clean null models in numbers."""

import functools
from typing import Any

import jax

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import DIGITS, GREY, classifier, random_images, random_labels
from benchmarks.suites.training import RATE, supervised
from dfke_jax.core import device_mesh
from dfke_jax.nn import Classifier, independent_training, optimiser, shares
from dfke_jax.watermarking import SMALL_MARKING, keygen, mark


def _peer(name: str, network: Classifier) -> Any:
    """A network of the same kind in PyTorch."""
    from benchmarks import peers, peers_inference

    if name == "lenet5":
        return peers.LeNet5()
    return peers_inference.mlp_from(network.variables).requires_grad_(True)


def marking_row(
    name: str,
    shape: tuple,
    pool: int,
    triggers: int,
    length: int,
    plain_length: int,
    peer_steps: int,
    blocks: int = 11,
) -> Row:
    """Marking a network from scratch: batches of 100 rows of the task and two trigger pairs."""
    settings, key = SMALL_MARKING, jax.random.key(31)
    network, images, labels = classifier(name, shape=shape), random_images(pool, shape), random_labels(pool)
    secret, _ = keygen(10, shape=shape, count=triggers, kind="noise", key=jax.random.key(30))
    made = mark(network, images, labels, secret, settings)

    def peer() -> Any:
        from benchmarks import peers_watermarking

        pairs = secret.triggers.images, secret.labels
        return peers_watermarking.Marking(_peer(name, network), (images, labels), pairs, settings, peer_steps)

    contenders = {
        "ours": Program(made, key, units=1, length=length),
        "lax_scan": Program(made, key, units=1, length=plain_length, convolution="lax"),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"network": name, "batch": settings.batch_size, "triggers_per_batch": settings.triggers_per_batch}
    params |= {"triggers": triggers, "pool": pool}
    return Row("steps/s", params, contenders, also={"images/s": settings.batch_size}, blocks=blocks)


def null_row(
    name: str,
    shape: tuple,
    members: int,
    batch: int,
    pool: int,
    size: int,
    length: int,
    blocks: int = 7,
    plain: bool = False,
) -> Row:
    """Training of clean networks, each on its bootstrapped share of one pool; with `plain` convolutions too."""
    network, images, labels = classifier(name, shape=shape), random_images(pool, shape), random_labels(pool)
    table = shares(jax.random.key(32), pool, members, "bootstrap", size)
    train = functools.partial(independent_training, optimizer=optimiser("adam", RATE), batch_size=batch)
    mesh = device_mesh(models=jax.device_count())
    spreads = jax.device_count() > 1 and members % jax.device_count() == 0
    single = supervised(name, pool, batch, shape)  # the same arithmetic
    keys = jax.random.split(jax.random.key(33), members)

    def program(strategy: Any, spread: bool = False, **options: Any) -> Program:
        made = train(network, images, labels, table, strategy=strategy, mesh=mesh if spread else None)
        return Program(made, keys, units=members, length=length, elementary=single, repeats=members, **options)

    def peer() -> Any:
        from benchmarks import peers_watermarking

        networks = [_peer(name, network) for _ in range(members)]
        return peers_watermarking.NullModels(networks, images, labels, table, batch, RATE, 1)

    contenders = {
        "ours": program("auto", spread=spreads),
        "ours_one_device": program("auto"),
        **({"lax_vmap": program("vmap", convolution="lax")} if plain else {}),
        "pytorch": Peer(peer, units=members),
    }
    params = {
        "network": name,
        "members": members,
        "batch": batch,
        "pool": pool,
        "size": size,
        "learning_rate": RATE,
    }
    return Row("model-steps/s", params, contenders, also={"images/s": batch}, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {
            "backdoor_marking/lenet5/8": functools.partial(marking_row, "lenet5", GREY, 200, 8, 2, 2, 2, 7),
            "null_population/lenet5/2": functools.partial(null_row, "lenet5", GREY, 2, 8, 100, 20, 2),
            "null_population/mlp_small/2": functools.partial(null_row, "mlp_small", DIGITS, 2, 8, 100, 20, 2),
        }
    return {
        "backdoor_marking/lenet5/100": functools.partial(marking_row, "lenet5", GREY, 10_000, 100, 50, 10, 20),
        "backdoor_marking/mlp_small/100": functools.partial(marking_row, "mlp_small", DIGITS, 1438, 100, 500, 500, 200),
        "null_population/lenet5/100": functools.partial(null_row, "lenet5", GREY, 100, 64, 10_000, 1000, 2),
        "null_population/mlp_small/100": functools.partial(null_row, "mlp_small", DIGITS, 100, 64, 1438, 1438, 10),
    }


def gpu_rows() -> Rows:
    """The same on an accelerator, where chunks are longer and one network among a hundred is a small thing."""
    return {
        "backdoor_marking/lenet5/100": functools.partial(marking_row, "lenet5", GREY, 10_000, 100, 1000, 1000, 100),
        "null_population/lenet5/100": functools.partial(
            null_row, "lenet5", GREY, 100, 64, 10_000, 1000, 20, plain=True
        ),
    }
