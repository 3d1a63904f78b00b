"""Unsure queries: of images at hand, those that the clone is least sure of are asked.

This is a whole attack: settings that state its cost, and ask and tell. It never holds its victim.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Static
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.extraction.pool import check_pool, read_targets
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.training import Training, optimiser, trained, training
from dfke_jax.oracle.reveal import Reveal


@dataclasses.dataclass(frozen=True)
class UnsureSettings:
    """q queries a step, chosen among c·q images (c is ``choice``), and updates on their answers."""

    queries_per_step: int = 50
    choice: int = 4
    updates: int = 20
    learning_rate: float = 2e-3

    def __post_init__(self):
        if min(self.queries_per_step, self.choice, self.updates) < 1 or self.learning_rate <= 0:
            raise InputError(f"sizes must be at least 1 and learning_rate positive, got {self}")

    def queries(self, steps: int) -> int:
        """What the attack costs, by its formula: q a step."""
        return steps * self.queries_per_step


def unsure_queries(clone: Classifier, pool: Array, reveal: Reveal, settings: UnsureSettings) -> Attack:
    """Asks the q of c·q images drawn from the pool whose answers −Σ p log p is largest for.

    Args:
      clone: gives the network; fresh parameters are drawn. pool: (N, H, W, C), N ≥ c·q.
      reveal: what the victim answers.

    Returns:
      An `Attack` over `Training`. Metrics: ``loss`` (of the last update), ``entropy`` (of the rows).

    Source: Lewis and Gale, A Sequential Algorithm for Training Text Classifiers, SIGIR 1994.
    """
    check_pool(clone, pool, settings.choice * settings.queries_per_step)
    shared = (clone, pool, Static((reveal, settings)))
    return Attack(Partial(_init, *shared), Partial(_ask, *shared), Partial(_tell, *shared))


def _init(clone: Classifier, pool: Array, static: Static, key: Key) -> Training:
    fresh = Classifier.create(clone.module, key, clone.input_shape, clone.preprocessing).variables
    rule = optimiser("adam", static.value[1].learning_rate)
    return Training(fresh, rule.init(fresh["params"]))


def _entropy(network: Classifier, images: Array) -> Array:
    log_p = jax.nn.log_softmax(network(images))
    return -jnp.sum(jnp.exp(log_p) * log_p, -1)


def _ask(clone: Classifier, pool: Array, static: Static, key: Key, state: Training) -> tuple[Training, Array]:
    settings, count = static.value[1], static.value[1].queries_per_step
    drawn = jax.random.choice(key, pool.shape[0], (settings.choice * count,), replace=False)
    images = as_float(pool[drawn])
    return state, images[lax.top_k(_entropy(trained(clone, state), images), count)[1]]


def _tell(
    clone: Classifier, pool: Array, static: Static, key: Key, state: Training, rows: Array, answers: Any
) -> tuple[Training, Metrics]:
    reveal, settings = static.value
    entropy = _entropy(trained(clone, state), rows).mean()
    learning = training(
        clone, rows, read_targets(answers, reveal, clone.num_classes), loss=Partial(soft_cross_entropy),
        optimizer=optimiser("adam", settings.learning_rate), batch_size=settings.queries_per_step,
    )  # fmt: skip
    update = lambda state, key: learning.step(key, state)
    state, metrics = lax.scan(update, state, jax.random.split(key, settings.updates))
    return state, {"loss": metrics["loss"][-1], "entropy": entropy}
