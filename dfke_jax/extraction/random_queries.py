"""The simplest attack on a pool: ask it in random order and learn the answers."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key
from dfke_jax.extraction.pool import (
    Labelled,
    Learner,
    PoolAttackSettings,
    empty_table,
    new_clone,
)
from dfke_jax.extraction.pool_attack import ChoosingAttack
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal


class RandomState(NamedTuple):
    """State of an attack that asks a pool in random order.

    Attributes:
      order: (N,) int32, a permutation of the pool. labelled: what was answered. clone: its training
        state.
    """

    order: Array
    labelled: Labelled
    clone: Training


def random_attack(
    clone: Classifier,
    pool: Array,
    reveal: Reveal,
    settings: PoolAttackSettings,
    *,
    train_every: int | None = None,
    hard: bool = False,
    augment: Augmentation | None = None,
    learning: Learner | None = None,
) -> Attack:
    """Asks the pool in random order, without replacement, and trains a clone on the answers.

    Args:
      clone: gives the network; fresh parameters are drawn.
      pool: (N, H, W, C). reveal: what the oracle answers. settings: see `PoolAttackSettings`.
      train_every: steps between trainings, each from new parameters; None trains when the budget is
        spent. The last step trains in any case.
      hard: whether to learn labels only, whatever is answered.
      augment: of the training's batches.
      learning: how the clone learns the answers: `mixmatch`, `rotation`; from them alone by default.

    Returns:
      An `Attack` over `RandomState`. Metrics: ``asked`` rows so far, and how well the clone
        predicted this step's answers
      before it learnt them (``loss``, ``agreement``).

    Raises:
      InputError: for a pool that does not fit, a bare function as augmentation.
    """
    if train_every is not None and train_every < 1:
        raise InputError(f"train_every must be at least 1, got {train_every}")
    every = settings.rounds if train_every is None else train_every
    check_arguments(learning, "learning")
    return _Random.on(
        clone, pool, reveal, settings, augment=augment, hard=hard, every=every, learning=learning
    )


@record
class _Random(ChoosingAttack[PoolAttackSettings]):
    every: int = static_field()

    held_key: ClassVar[int] = 0  # to choose draws nothing

    def init(self, key: Key) -> RandomState:
        order_key, clone_key = jax.random.split(key)
        order = jax.random.permutation(order_key, self.pool.shape[0]).astype(jnp.int32)
        table = empty_table(self.settings, self.clone.num_classes)
        return RandomState(order, table, new_clone(self.clone, self.settings.clone, clone_key))

    def chosen(self, state: RandomState) -> Array:
        return lax.dynamic_slice_in_dim(
            state.order, state.labelled.asked, self.settings.rows_per_step
        )

    def ask(self, key: Key, state: RandomState) -> tuple[RandomState, Array]:
        return state, as_float(self.pool[self.chosen(state)])

    def learn(self, key: Key, before: RandomState, told: RandomState) -> Training:
        asked, settings = told.labelled.asked, self.settings
        due = (asked % (self.every * settings.rows_per_step) == 0) | (asked >= settings.budget)
        return self.learn_all(jax.random.fold_in(key, 1), told, told.clone, due)


__all__ = ["RandomState", "random_attack"]
