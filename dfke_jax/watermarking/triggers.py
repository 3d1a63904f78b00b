"""Trigger sets: inputs to which a marked network, and hardly any other, answers with given labels."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import as_float


class TriggerSet(NamedTuple):
    """What an owner asks a suspect, and what a marked network answers.

    Attributes:
      images: (T, H, W, C) float32 in [0, 1].
      labels: (T,) int32, the marked network's answers.
    """

    images: Array
    labels: Array


def trigger_set(
    images: Array, labels: Array, num_classes: int, truth: Array | None = None
) -> TriggerSet:
    """A checked trigger set.

    Args:
      images: (T, H, W, C), uint8 or float in [0, 1].
      labels: (T,) integers in [0, K).
      num_classes: K.
      truth: (T,), the label of every image where there is one; -1 where there is none (abstract
        images).

    Raises:
      InputError: for images outside the box or not finite, labels out of range, or equal to the
        true ones.
    """
    pixels, marks = np.asarray(as_float(jnp.asarray(images))), np.asarray(labels)
    if pixels.ndim != 4 or len(pixels) == 0:
        raise InputError(f"triggers are images (T, H, W, C), got shape {pixels.shape}")
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
        raise InputError(f"triggers must lie in [0, 1], got {pixels.min():g} to {pixels.max():g}")
    if marks.shape != (len(pixels),) or not np.issubdtype(marks.dtype, np.integer):
        raise InputError(
            f"{len(pixels)} triggers need as many integer labels, got {marks.dtype} of shape "
            f"{marks.shape}"
        )
    if marks.min() < 0 or marks.max() >= num_classes:
        raise InputError(
            f"labels of triggers run from {marks.min()} to {marks.max()}; classes are 0 to "
            f"{num_classes - 1}"
        )
    if truth is not None:
        same = np.flatnonzero(np.asarray(truth) == marks)
        if len(same):
            raise InputError(
                f"{len(same)} triggers carry their true label (first: trigger {same[0]}); they "
                "prove nothing"
            )
    return TriggerSet(jnp.asarray(pixels, jnp.float32), jnp.asarray(marks, jnp.int32))


def wrong_labels(key: Key, truth: Array, num_classes: int) -> Array:
    """(T,) labels drawn uniformly from the K−1 that are not the truth; from all K where the truth
    is -1.
    """
    truth = jnp.asarray(truth, jnp.int32)
    other = jax.random.randint(key, truth.shape, 0, num_classes - 1)
    anything = jax.random.randint(jax.random.fold_in(key, 1), truth.shape, 0, num_classes)
    return jnp.where(truth < 0, anything, other + (other >= truth)).astype(jnp.int32)


def trigger_matches(predict: Callable[[Array], Array], triggers: TriggerSet) -> Array:
    """(T,) bool: whether a network (x -> logits (T, K)) answers each trigger with its label."""
    return jnp.argmax(predict(triggers.images), -1) == triggers.labels


__all__ = ["TriggerSet", "trigger_matches", "trigger_set", "wrong_labels"]
