"""All attacks by name, and the table of schemes against attacks."""

import dataclasses
import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.core.types import Array, Key
from dfke_jax.evaluation.agreement import accuracy
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal.adversarial import adversarial_fine_tuning
from dfke_jax.watermarking.removal.common import Removed, Suspect, Watch
from dfke_jax.watermarking.removal.fine_tuning import DESCRIPTIONS, fine_tune, high_rate_fine_tuning
from dfke_jax.watermarking.removal.neural_cleanse import neural_cleanse, neural_cleanse_patching
from dfke_jax.watermarking.removal.overwriting import overwriting
from dfke_jax.watermarking.removal.pruning import dormant_pruning, fine_pruning, magnitude_pruning
from dfke_jax.watermarking.removal.quantisation import half_precision, quantisation
from dfke_jax.watermarking.removal.retraining import retraining
from dfke_jax.watermarking.removal.smoothing import input_filter, noise_averaging
from dfke_jax.watermarking.removal.transfer_learning import transfer_learning
from dfke_jax.watermarking.triggers import TriggerSet, trigger_matches

RemovalAttack = Callable[..., Removed]
"""``(key, marked, images, labels, **settings) -> Removed``; those that train take ``watch`` as
well.
"""

REMOVALS: dict[str, RemovalAttack] = {
    **{kind: functools.partial(fine_tune, kind) for kind in DESCRIPTIONS},
    "high_rate_fine_tuning": high_rate_fine_tuning,
    "adversarial_fine_tuning": adversarial_fine_tuning,
    "magnitude_pruning": magnitude_pruning,
    "dormant_pruning": dormant_pruning,
    "fine_pruning": fine_pruning,
    "neural_cleanse": neural_cleanse,
    "neural_cleanse_patching": neural_cleanse_patching,
    "quantisation": quantisation,
    "half_precision": half_precision,
    "soft_retraining": functools.partial(retraining, answers="soft"),
    "hard_retraining": functools.partial(retraining, answers="hard"),
    "overwriting": overwriting,
    "transfer_learning": transfer_learning,
    "input_filter": input_filter,
    "noise_averaging": noise_averaging,
}
"""The attacks by name. ``transfer_learning`` wants images and labels of another task."""


def removal(name: str) -> RemovalAttack:
    """An attack by name.

    Raises:
      UnknownNameError: naming the nearest.
    """
    if name not in REMOVALS:
        raise UnknownNameError("removal attack", name, REMOVALS)
    return REMOVALS[name]


def made_elsewhere(
    make: Callable[[Key, Classifier, Array, Array], Suspect], name: str, description: str
) -> RemovalAttack:
    """A removal attack from whatever makes a model of a marked one: an extraction attack, say.

    Args:
      make: ``(key, marked, images, labels) -> suspect``, anything with ``predict``.
      name, description: for tables.
    """
    return functools.partial(_made_elsewhere, make, name, description)


def _made_elsewhere(make, name, description, key, marked, images, labels) -> Removed:
    suspect = make(key, marked, images, labels)
    return Removed(suspect, suspect, name, description)


class Standing(NamedTuple):
    """How a network stands, in per cent.

    Attributes:
      accuracy: on clean test images; NaN for a network of fewer classes than theirs, made for
        another task.
      trigger_accuracy: share of triggers answered with the mark's label.
    """

    accuracy: float
    trigger_accuracy: float


class Row(NamedTuple):
    """One cell of the matrix: one attack on one scheme.

    Attributes:
      scheme, attack: their names.
      before, after: the marked network, and what the attack left of it.
      removed: the attack's outcome, its trace included.
    """

    scheme: str
    attack: str
    before: Standing
    after: Standing
    removed: Removed


def standing(removed: Removed, triggers: TriggerSet, images: Any, labels: Any) -> Standing:
    """Clean accuracy of what is deployed and trigger accuracy of what is verified.

    Args:
      removed: the outcome of an attack. triggers: the owner's.
      images, labels: of the test set.
    """
    answered = trigger_matches(
        lambda x: jnp.asarray(removed.for_verification.predict(np.asarray(x))), triggers
    )
    logits, truth = removed.classifier.predict(images), np.asarray(labels)
    correct = accuracy(logits, truth) if truth.max() < logits.shape[1] else float("nan")
    return Standing(100 * correct, 100 * float(np.asarray(answered).mean()))


def removal_matrix(
    key: Key,
    schemes: Mapping[str, tuple[Classifier, TriggerSet]],
    attacks: Mapping[str, RemovalAttack],
    images: Array,
    labels: Array,
    test_images: Any,
    test_labels: Any,
    *,
    points: int = 0,
    traced_rows: int = 2000,
) -> list[Row]:
    """Every attack on every scheme.

    The key of an attack is folded from its name, so that it does the same whatever stands beside it
    in the table.

    Args:
      schemes: name -> (marked network, its triggers).
      attacks: name -> attack, from `REMOVALS`, ``functools.partial`` of them with other settings,
        or `made_elsewhere`.
      images, labels: the attacker's.
      test_images, test_labels: what clean accuracy is measured on.
      points: how often attacks that train are looked at on their way; 0 for never. The traces carry
        ``accuracy`` and ``trigger_accuracy``. Of ``transfer_learning`` the accuracy means nothing
        here: its task is another.
      traced_rows: on how many test images, the first ones, accuracy is measured on the way.

    Returns:
      One `Row` per scheme and attack, scheme by scheme.
    """
    rows = []
    for scheme, (marked, triggers) in schemes.items():
        look = functools.partial(
            _look, triggers, test_images[:traced_rows], test_labels[:traced_rows]
        )
        before = standing(
            Removed(marked, marked, "none", "the marked network"),
            triggers,
            test_images,
            test_labels,
        )
        for name, attack in attacks.items():
            own = jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
            watch = (
                {"watch": Watch(look, points)}
                if points and "watch" in inspect.signature(attack).parameters
                else {}
            )
            removed = attack(own, marked, images, labels, **watch)
            after = standing(removed, triggers, test_images, test_labels)
            rows.append(Row(scheme, name, before, after, dataclasses.replace(removed, attack=name)))
    return rows


def _look(triggers: TriggerSet, images: Any, labels: Any, removed: Removed) -> dict[str, float]:
    return standing(removed, triggers, images, labels)._asdict()


__all__ = [
    "REMOVALS",
    "RemovalAttack",
    "Row",
    "Standing",
    "made_elsewhere",
    "removal",
    "removal_matrix",
    "standing",
]
