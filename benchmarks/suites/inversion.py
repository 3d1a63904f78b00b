"""DeepInversion: noise optimisation with the statistics stored in normalisation layers."""

import dataclasses
import functools
from typing import Any

import jax

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import classifier
from dfke_jax.distillation import InversionSettings, deep_inversion


def row(batch: int, steps: int, plain_steps: int, peer_steps: int, blocks: int = 11) -> Row:
    """Inversion of batches out of LeNet-5 with batch normalisation, each begun afresh; `steps` updates a batch."""
    teacher = classifier("lenet5_bn")
    settings = InversionSettings()
    key = jax.random.key(9)

    def inversion(steps: int) -> Any:
        return deep_inversion(teacher, dataclasses.replace(settings, steps=steps), batch, batch)

    def program(steps: int, **options: Any) -> Program:
        units = batch * steps
        return Program(inversion(steps), key, units=units, elementary=inversion(1), repeats=steps, **options)

    def peer() -> Any:
        from benchmarks import peers

        return peers.DeepInversion(
            peers.lenet5_from(teacher.variables),
            batch,
            statistics=settings.statistics,
            total_variation=settings.total_variation,
            jitter=settings.jitter,
            rate=settings.learning_rate,
            steps=peer_steps,
        )

    contenders = {
        "ours": program(steps),
        "lax_scan": program(plain_steps, convolution="lax"),
        "pytorch": Peer(peer, units=batch * peer_steps),
    }
    params = {"network": "lenet5_bn", "batch": batch, "form": settings.form, "jitter": settings.jitter}
    return Row("image-steps/s", params, contenders, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {"deep_inversion/lenet5_bn/8": functools.partial(row, 8, 3, 2, 2, 7)}
    return {"deep_inversion/lenet5_bn/256": functools.partial(row, 256, 50, 10, 10)}
