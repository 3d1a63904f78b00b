"""Data-free extraction: iterations of a generator, a clone and a victim that answers in the same program."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from benchmarks.harness import Peer, Program, Row, Rows, Split
from benchmarks.suites.common import classifier
from dfke_jax.core import Method, against
from dfke_jax.extraction import SMALL_DFME, DFMESettings, dfme
from dfke_jax.oracle import oracle_for
from dfke_jax.synthesis import precise


def extraction(network: str, settings: DFMESettings, clone: str = "") -> Method:
    """DFME of a network of random weights, by a clone of the same kind by default; ask, answer and tell in one program."""
    attack: Any = against(dfme(classifier(clone or network, 7), settings), precise(oracle_for(classifier(network))))
    return attack


@jax.jit
def _answer(oracle: Any, rows: Any) -> Any:
    return oracle(rows)


def on_the_host(network: str, settings: DFMESettings) -> Any:
    """The same attack against the same victim, which answers between two compiled halves, from NumPy to NumPy."""
    oracle = oracle_for(classifier(network))
    answer = lambda rows: np.asarray(_answer(oracle, rows))
    return against(dfme(classifier(network, 7), settings), answer, host=True)


def row(
    width: int, batch: int, clone_batches: int, length: int, plain_length: int, peer_steps: int, blocks: int = 11
) -> Row:
    """DFME against LeNet-5: `length` iterations per chunk, `plain_length` with the plain convolution."""
    settings = dataclasses.replace(
        SMALL_DFME,
        batch_size=batch,
        clone_batches=clone_batches,
        width=width,
        schedule="constant",
        reuse=False,
        replay_batches=0,
    )
    made = extraction("lenet5", settings)
    # without the loop over the clone's updates, whose arithmetic would be counted once
    one = extraction("lenet5", dataclasses.replace(settings, unroll=True))
    key = jax.random.key(11)

    def peer() -> Any:
        from benchmarks import peers

        return peers.DataFreeExtraction(
            peers.lenet5_from(classifier("lenet5").variables), width=width, batch=batch, latent=settings.latent,
            clone_batches=clone_batches, epsilon=settings.epsilon, directions=settings.directions,
            clone_rate=settings.clone_rate, generator_rate=settings.generator_rate, steps=peer_steps,
        )  # fmt: skip

    contenders = {
        "ours": Program(made, key, units=1, length=length, elementary=one, spread=True),
        "ours_one_device": Program(made, key, units=1, length=length, elementary=one),
        "host_split": Split(on_the_host("lenet5", settings), key, units=1),
        "lax_scan": Program(made, key, units=1, length=plain_length, convolution="lax", elementary=one),
        "lax_step": Program(one, key, units=1, convolution="lax", scanned=False),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"victim": "lenet5", "clone": "lenet5", "width": width, "batch": batch, "clone_batches": clone_batches}
    params |= {"directions": settings.directions, "latent": settings.latent}
    return Row("iterations/s", params, contenders, also={"queries/s": settings.rows_per_step}, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {"dfme/lenet5/2": functools.partial(row, 2, 4, 2, 2, 1, 1, 7)}
    return {"dfme/lenet5/16": functools.partial(row, 16, 256, 5, 4, 1, 2, 7)}


def large_row(victim: str, clone: str, length: int, peer_steps: int, blocks: int = 11) -> Row:
    """DFME as published for CIFAR-10: batch 256, five clone batches, one direction, a generator of width 64."""
    settings = DFMESettings(schedule="constant")
    made = extraction(victim, settings, clone)
    key = jax.random.key(11)

    def peer() -> Any:
        from benchmarks import peers

        module: Any = classifier(victim).module
        own: Any = classifier(clone).module
        return peers.DataFreeExtraction(
            peers.resnet_from(classifier(victim).variables, module.depths, module.widths),
            clone=peers.ResNet(own.depths, own.widths), size=32, channels=3, momentum=settings.momentum,
            width=settings.width, batch=settings.batch_size, latent=settings.latent,
            clone_batches=settings.clone_batches, epsilon=settings.epsilon, directions=settings.directions,
            clone_rate=settings.clone_rate, generator_rate=settings.generator_rate, steps=peer_steps,
        )  # fmt: skip

    contenders = {
        "ours": Program(made, key, units=1, length=length, precision="bfloat16"),
        "ours_float32": Program(made, key, units=1, length=length),
        "pytorch": Peer(peer, units=peer_steps),
    }
    params = {"victim": victim, "clone": clone, "width": settings.width, "batch": settings.batch_size}
    params |= {"clone_batches": settings.clone_batches, "directions": settings.directions, "latent": settings.latent}
    return Row(
        "iterations/s", params, contenders, also={"queries/s": settings.rows_per_step}, blocks=blocks, counted=False
    )


def gpu_rows() -> Rows:
    """The published sizes."""
    return {"dfme/resnet34/64": functools.partial(large_row, "resnet34", "resnet18", 5, 2, 7)}
