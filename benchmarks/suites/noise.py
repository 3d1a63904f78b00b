"""Noise optimisation through a frozen network: the inner loop of data impressions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import classifier
from dfke_jax.core import Method, Static, constrain_samples, method
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.nn import Classifier
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.training import optimiser
from dfke_jax.synthesis.noise import optimise_noise

TEMPERATURE = 20.0
RATE = 0.01


def descent(teacher: Classifier, targets: Array, steps: int, group: int | None = None) -> Method:
    """A method whose every step takes a batch of images `steps` further down; Adam's moments are carried on."""
    return method(_init, _step, teacher, targets, Static((steps, group)))


def _init(teacher: Classifier, targets: Array, steps: Static, key: Key) -> tuple[Array, Any]:
    start = jax.random.uniform(key, (targets.shape[0], *teacher.input_shape))
    state = start, optimiser("adam", RATE).init(start)
    return jax.tree.map(lambda leaf: constrain_samples(leaf) if leaf.ndim else leaf, state)


def _step(
    teacher: Classifier, targets: Array, steps: Static, key: Key, state: tuple[Array, Any]
) -> tuple[tuple[Array, Any], Metrics]:
    def objective(key: Key, images: Array, targets: Array) -> tuple[Array, Array]:
        loss = soft_cross_entropy(teacher(images), targets, TEMPERATURE)
        return loss, jnp.zeros_like(loss)

    images, moments = state
    made = optimise_noise(
        key,
        objective,
        images,
        steps=steps.value[0],
        optimizer=optimiser("adam", RATE),
        box=teacher.preprocessing.box,
        optimizer_state=moments,
        context=targets,
        group=steps.value[1],
    )
    return (made.images, made.optimizer_state), {"loss": jnp.mean(made.loss)}


def plain_step(teacher: Classifier, targets: Array) -> Method:
    """The same descent written out for one step, without the scan, as for a loop in Python.

    A scan of one step would not do: XLA has fixed the convolutions' form by the time it removes such a loop.
    """
    return method(_init, _plain_step, teacher, targets, Static(1))


def _plain_step(
    teacher: Classifier, targets: Array, steps: Static, key: Key, state: tuple[Array, Any]
) -> tuple[tuple[Array, Any], Metrics]:
    def loss(images: Array) -> Array:
        return jnp.sum(soft_cross_entropy(teacher(images), targets, TEMPERATURE))

    images, moments = state
    value, gradient = jax.value_and_grad(loss)(images)
    updates, moments = optimiser("adam", RATE).update(gradient, moments, images)
    moved: Any = optax.apply_updates(images, updates)
    return (jnp.clip(moved, *teacher.preprocessing.box), moments), {"loss": value / targets.shape[0]}


def row(network: str, batch: int, steps: int, *, plain_steps: int = 0, peer_steps: int = 10, blocks: int = 11) -> Row:
    """Noise optimisation of one batch.

    Args:
      network: registered name.
      batch: images side by side.
      steps: in one scan.
      plain_steps: in one scan of the plain convolution, which is slow there; 0 leaves that contender out.
      peer_steps: per call of the peer.
      blocks: see `Row`.
    """
    teacher = classifier(network)
    targets = jax.nn.softmax(jax.random.normal(jax.random.key(3), (batch, 10)))
    key = jax.random.key(4)
    one = descent(teacher, targets, 1, group=batch)  # no loop over groups, whose arithmetic would be counted once

    def program(steps: int, **options: Any) -> Program:
        made = descent(teacher, targets, steps)
        return Program(made, key, units=batch * steps, elementary=one, repeats=steps, **options)

    def peer() -> Any:
        from benchmarks import peers

        if network.startswith("lenet"):
            model: Any = peers.lenet5_from(teacher.variables)
        else:
            model = peers.resnet_from(teacher.variables, teacher.module.depths, teacher.module.widths)  # type: ignore[attr-defined]
        # where `run` starts a method
        start, _ = one.init(jax.random.fold_in(key, np.uint32(2**32 - 1)))
        return peers.NoiseOptimisation(model, start, targets, TEMPERATURE, RATE, peer_steps)

    contenders: dict[str, Program | Peer] = {"ours": program(steps, spread=True), "ours_one_device": program(steps)}
    if jax.default_backend() != "cpu":
        contenders["ours_bfloat16"] = program(steps, precision="bfloat16")
    if plain_steps:
        contenders["lax_scan"] = program(plain_steps, convolution="lax")
    alone = plain_step(teacher, targets)
    contenders["lax_step"] = Program(alone, key, units=batch, convolution="lax", scanned=False)
    contenders["pytorch"] = Peer(peer, units=batch * peer_steps)
    params = {"network": network, "batch": batch, "temperature": TEMPERATURE, "learning_rate": RATE}
    return Row("image-steps/s", params, contenders, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        return {
            "noise_optimisation/lenet5/8": functools.partial(
                row, "lenet5", 8, 3, plain_steps=2, peer_steps=3, blocks=7
            ),
            "noise_optimisation/resnet8/4": functools.partial(row, "resnet8", 4, 2, peer_steps=2, blocks=7),
        }
    return {
        "noise_optimisation/lenet5/100": functools.partial(row, "lenet5", 100, 100, plain_steps=20),
        "noise_optimisation/lenet5/400": functools.partial(row, "lenet5", 400, 100, plain_steps=10, peer_steps=5),
        "noise_optimisation/resnet18/32": functools.partial(row, "resnet18", 32, 2, peer_steps=1, blocks=7),
    }


def gpu_rows() -> Rows:
    """The same, in batches for an accelerator."""
    return {
        "noise_optimisation/lenet5/8192": functools.partial(row, "lenet5", 8192, 100),
        "noise_optimisation/resnet18/512": functools.partial(row, "resnet18", 512, 10, peer_steps=5),
    }
