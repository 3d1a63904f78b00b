"""Embeddings of dataset inference: blind walks in label queries, MinGD in gradients."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Peer, Program, Row, Rows
from benchmarks.suites.common import classifier, random_images
from dfke_jax.core import Method, Static, constrain_samples, method
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.dataset_inference import BlindWalkSettings, MinGDSettings, blind_walk, gradient_evaluations, mingd
from dfke_jax.dataset_inference.blind_walk import directions
from dfke_jax.nn import Classifier
from dfke_jax.nn.mlp import MLP


def network(name: str) -> Classifier:
    """A registered network with fresh parameters, or ``mlp64``: 64-256-10 on 8×8 images."""
    if name == "mlp64":
        return Classifier.create(MLP(10, (256,)), jax.random.key(0), (8, 8, 1))
    return classifier(name)


def _start(rows: int, columns: int, key: Key) -> Array:
    return constrain_samples(jnp.zeros((rows, columns, 3)))


def _init_walk(model: Classifier, images: Array, labels: Array, settings: Static, key: Key) -> Array:
    return _start(len(images), settings.value.starts, key)


def _walk(
    model: Classifier, images: Array, labels: Array, settings: Static, key: Key, state: Array
) -> tuple[Array, Metrics]:
    walks = blind_walk(key, model, images, labels, settings.value)
    return walks.distances, {"distance": walks.distances.mean()}


def _init_rows(model: Classifier, rows: Array, key: Key) -> Array:
    return jnp.zeros(())


def _forward(model: Classifier, rows: Array, key: Key, state: Array) -> tuple[Array, Metrics]:
    total = model(rows).sum()
    return total, {"sum": total}


def _gradient(model: Classifier, rows: Array, key: Key, state: Array) -> tuple[Array, Metrics]:
    total = jax.grad(lambda rows: model(rows)[:, 0].sum())(rows).sum()
    return total, {"sum": total}


def walk_row(
    name: str, samples: int, settings: BlindWalkSettings, peer_samples: int, peer_forwards: int = 2, blocks: int = 11
) -> Row:
    """Blind walks from samples of nothing in particular; the unit is a query that a step-by-step attacker would send."""
    model = network(name)
    images = random_images(samples, model.input_shape)
    labels = jnp.argmax(jax.jit(model.logits)(images), -1).astype(jnp.int32)
    key = jax.random.key(11)
    queries = blind_walk(key, model, images, labels, settings).queries  # other keys differ by little
    made: Method = method(_init_walk, _walk, model, images, labels, Static(settings))
    rows = random_images(settings.lanes_for(math.prod(model.input_shape)) * settings.block, model.input_shape)
    one = method(_init_rows, _forward, model, rows)
    repeats = math.ceil(queries / len(rows))

    def program(spread: bool) -> Program:
        return Program(made, key, units=queries, elementary=one, repeats=repeats, spread=spread)

    def peer(forwards: int) -> Any:
        from benchmarks import peers, peers_inference

        theirs = peers.lenet5_from if name.startswith("lenet") else peers_inference.mlp_from
        own = images[:peer_samples]
        ways = directions(key, jnp.arange(peer_samples, dtype=jnp.uint32), math.prod(model.input_shape), settings)
        return peers_inference.BlindWalk(
            theirs(model.variables), own, labels[:peer_samples], ways, settings.max_steps, forwards
        )

    peer_queries = blind_walk(key, model, images[:peer_samples], labels[:peer_samples], settings).queries
    contenders = {
        "ours": program(True),
        "ours_one_device": program(False),
        "pytorch": Peer(functools.partial(peer, peer_forwards), units=peer_queries),
        "pytorch_one_forward": Peer(functools.partial(peer, 1), units=peer_queries),
    }
    params = {"network": name, "samples": samples, "starts": settings.starts, "max_steps": settings.max_steps}
    params |= {"noise": settings.noise, "queries": queries, "peer_samples": peer_samples}
    return Row("label queries/s", params, contenders, blocks=blocks)


def _init_descent(model: Classifier, images: Array, settings: Static, key: Key) -> Array:
    return _start(len(images), model.num_classes, key)


def _descent(model: Classifier, images: Array, settings: Static, key: Key, state: Array) -> tuple[Array, Metrics]:
    found = mingd(model, images, settings.value)
    return found.distances, {"distance": found.distances.mean()}


def descent_row(name: str, samples: int, settings: MinGDSettings, peer_samples: int, blocks: int = 7) -> Row:
    """MinGD from samples of nothing in particular to all classes; the unit is a gradient that is needed."""
    model = network(name)
    images = random_images(samples, model.input_shape)
    found = mingd(model, images, settings)
    gradients = gradient_evaluations(found)
    key = jax.random.key(12)
    made = method(_init_descent, _descent, model, images, Static(settings))
    one = method(_init_rows, _gradient, model, random_images(settings.lanes, model.input_shape))
    repeats = math.ceil(gradients / settings.lanes)

    def program(spread: bool) -> Program:
        return Program(made, key, units=gradients, elementary=one, repeats=repeats, spread=spread)

    def peer() -> Any:
        from benchmarks import peers, peers_inference

        theirs = peers.lenet5_from if name.startswith("lenet") else peers_inference.mlp_from
        return peers_inference.MinGD(theirs(model.variables), images[:peer_samples], model.num_classes, settings)

    steps = np.asarray(found.steps[:peer_samples], np.int64)
    contenders = {
        "ours": program(True),
        "ours_one_device": program(False),
        "pytorch": Peer(peer, units=int(steps.sum()) + steps.size),
    }
    params = {"network": name, "samples": samples, "max_steps": settings.max_steps}
    params |= {"gradients": gradients, "peer_samples": peer_samples}
    return Row("gradients/s", params, contenders, blocks=blocks)


def rows(suite: str) -> Rows:
    """The rows of this file."""
    if suite == "smoke":
        walk, descent = BlindWalkSettings(starts=2, max_steps=6, noise=8.0), MinGDSettings(max_steps=3)
        return {
            "blind_walk/mlp64/8": functools.partial(walk_row, "mlp64", 8, walk, 4, blocks=7),
            "mingd/mlp64/4": functools.partial(descent_row, "mlp64", 4, descent, 2),
        }
    return {
        "blind_walk/mlp64/1200": functools.partial(walk_row, "mlp64", 1200, BlindWalkSettings(noise=4.0), 200),
        "blind_walk/lenet5/64": functools.partial(walk_row, "lenet5", 64, BlindWalkSettings(noise=16.0), 64, blocks=7),
        "mingd/mlp64/200": functools.partial(descent_row, "mlp64", 200, MinGDSettings(max_steps=100), 100),
        "mingd/lenet5/32": functools.partial(descent_row, "lenet5", 32, MinGDSettings(max_steps=50), 32),
    }
