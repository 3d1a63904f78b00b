"""Unsure queries: of images at hand, those that the clone is least sure of are asked.

This is a whole attack: settings that state its cost, and ask and tell. It never holds its victim.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core import Attack, InputError, Method, as_attack, record, static_field
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


def unsure_queries(
    clone: Classifier, pool: Array, reveal: Reveal, settings: UnsureSettings
) -> Attack:
    """Asks the q of c·q images drawn from the pool whose answers −Σ p log p is largest for.

    Args:
      clone: gives the network. pool: (N, H, W, C), N ≥ c·q. reveal: what the victim answers.

    Returns:
      An `Attack` over `Training`. Metrics: ``loss`` (of the last update), ``entropy`` (rows).

    Source: Lewis and Gale, A Sequential Algorithm for Training Text Classifiers, SIGIR 1994.
    """
    check_pool(clone, pool, settings.choice * settings.queries_per_step)
    return as_attack(UnsureQueries(clone=clone, pool=pool, reveal=reveal, settings=settings))


@record
class UnsureQueries:
    """Attributes: as given to `unsure_queries`. Arrays are arguments of the compiled program."""

    clone: Classifier
    pool: Array
    reveal: Reveal = static_field()
    settings: UnsureSettings = static_field()

    def learning(self, rows: Array, targets: Array) -> Method:
        rule, size = optimiser("adam", self.settings.learning_rate), self.settings.queries_per_step
        loss = Partial(soft_cross_entropy)
        return training(self.clone, rows, targets, loss=loss, optimizer=rule, batch_size=size)

    def init(self, key: Key) -> Training:
        return self.learning(self.pool, self.pool).init(key)  # of which it reads nothing

    def ask(self, key: Key, state: Training) -> tuple[Training, Array]:
        count, choice = self.settings.queries_per_step, self.settings.choice
        images = as_float(jax.random.choice(key, self.pool, (choice * count,), replace=False))
        return state, images[lax.top_k(self.entropy(state, images), count)[1]]

    def tell(self, key: Key, state: Training, rows: Array, answers: Any) -> tuple[Any, Metrics]:
        targets = read_targets(answers, self.reveal, self.clone.num_classes)
        step, entropy = self.learning(rows, targets).step, self.entropy(state, rows).mean()
        keys = jax.random.split(key, self.settings.updates)
        state, metrics = lax.scan(lambda state, key: step(key, state), state, keys)
        return state, {"loss": metrics["loss"][-1], "entropy": entropy}

    def entropy(self, state: Training, images: Array) -> Array:
        log_p = jax.nn.log_softmax(trained(self.clone, state)(images))
        return -jnp.sum(jnp.exp(log_p) * log_p, -1)
