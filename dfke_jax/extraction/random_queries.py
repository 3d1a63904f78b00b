"""The simplest attack on a pool: ask it in random order and learn the answers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack, Static, check_arguments
from dfke_jax.core.types import Array, Augmentation, Key, Metrics
from dfke_jax.extraction.pool import (
    Labelled,
    PoolSettings,
    check_pool,
    foreseen,
    label,
    learn_labelled,
    new_clone,
    nothing_labelled,
    read_targets,
    suited,
)
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import Training, trained
from dfke_jax.oracle.reveal import Reveal


class RandomState(NamedTuple):
    """State of an attack that asks a pool in random order.

    Attributes:
      order: (N,) int32, a permutation of the pool. labelled: what was answered. clone: its training state.
    """

    order: Array
    labelled: Labelled
    clone: Training


def random_attack(
    clone: Classifier,
    pool: Array,
    reveal: Reveal,
    settings: PoolSettings,
    *,
    train_every: int | None = None,
    hard: bool = False,
    augment: Augmentation | None = None,
) -> Attack:
    """Asks the pool in random order, without replacement, and trains a clone on the answers.

    Args:
      clone: gives the network; fresh parameters are drawn.
      pool: (N, H, W, C). reveal: what the oracle answers. settings: see `PoolSettings`.
      train_every: steps between trainings, each from new parameters; None trains when the budget is spent. The last
        step trains in any case.
      hard: whether to learn labels only, whatever is answered.
      augment: of the training's batches.

    Returns:
      An `Attack` over `RandomState`. Metrics: ``asked`` rows so far, and what the clone foresaw of this step's answers
      before it learnt them (``loss``, ``agreement``).

    Raises:
      InputError: for a pool that does not fit, a bare function as augmentation.
    """
    check_arguments(augment, "augment")
    settings = suited(settings, reveal, hard)
    check_pool(clone, pool, settings.budget)
    if train_every is not None and train_every < 1:
        raise InputError(f"train_every must be at least 1, got {train_every}")
    every = settings.rounds if train_every is None else train_every
    shared = (clone, pool, augment, Static((reveal, settings, every, hard)))
    return Attack(Partial(_init, *shared), Partial(_ask, *shared), Partial(_tell, *shared))


def _init(clone: Classifier, pool: Array, augment: Augmentation | None, static: Static, key: Key) -> RandomState:
    settings = static.value[1]
    order_key, clone_key = jax.random.split(key)
    order = jax.random.permutation(order_key, pool.shape[0]).astype(jnp.int32)
    return RandomState(
        order, nothing_labelled(settings, clone.num_classes), new_clone(clone, settings.clone, clone_key)
    )


def _chosen(settings: PoolSettings, state: RandomState) -> Array:
    return lax.dynamic_slice_in_dim(state.order, state.labelled.asked, settings.rows_per_step)


def _ask(
    clone: Classifier, pool: Array, augment: Augmentation | None, static: Static, key: Key, state: RandomState
) -> tuple[RandomState, Array]:
    return state, as_float(pool[_chosen(static.value[1], state)])


def _tell(
    clone: Classifier,
    pool: Array,
    augment: Augmentation | None,
    static: Static,
    key: Key,
    state: RandomState,
    rows: Array,
    answers: Any,
) -> tuple[RandomState, Metrics]:
    reveal, settings, every, hard = static.value
    held_key, train_key = jax.random.split(key)
    targets = read_targets(answers, reveal, clone.num_classes, hard)
    metrics = foreseen(trained(clone, state.clone), rows, targets)
    labelled = label(held_key, state.labelled, _chosen(settings, state), targets, settings.held_per_step)
    due = (labelled.asked % (every * settings.rows_per_step) == 0) | (labelled.asked >= settings.budget)
    learnt = learn_labelled(train_key, clone, pool, labelled, settings.clone, state.clone, due, augment)
    return RandomState(state.order, labelled, learnt), {"asked": labelled.asked.astype(jnp.float32), **metrics}


__all__ = ["RandomState", "random_attack"]
