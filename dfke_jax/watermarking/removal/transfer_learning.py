"""Removal by transfer: the layers below are taken over for another task, under a new output layer."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import trained, training
from dfke_jax.watermarking.removal.common import (
    FINE_TUNING,
    LOSS,
    Removed,
    TrainingSettings,
    Watch,
    aside,
    carry_out,
    check_attacker,
)
from dfke_jax.watermarking.removal.fine_tuning import fresh_head, with_private_head


def transfer_learning(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    num_classes: int | None = None,
    settings: TrainingSettings = FINE_TUNING,
    watch: Watch | None = None,
) -> Removed:
    """Trains all layers on another task under a fresh output layer.

    Args:
      marked: the marked network.
      images, labels: of the other task, in the shape that the network takes; labels in [0, K').
      num_classes: K'; one more than the largest label by default.
      settings: of the training.

    Returns:
      `Removed`: `classifier` has K' outputs and is to be measured on the other task; in
        `for_verification` the marked
      network's own output layer is plugged back in.

    Raises:
      InputError: for images or labels that do not fit, or a network whose number of classes cannot
        be changed.

    Source: Adi et al., USENIX Security 2018, section 5.2 (CIFAR-10 to STL-10).
    """
    found = np.asarray(labels)
    classes = num_classes or (
        int(found.max()) + 1 if found.size and found.dtype.kind in "iu" else 2
    )
    check_attacker(marked, images, labels, classes)
    if not hasattr(marked.module, "num_classes"):
        raise InputError(f"{type(marked.module).__name__} has no attribute num_classes to change")
    params = fresh_head(aside(key, 1), marked.variables["params"], classes)
    start = dataclasses.replace(
        marked,
        module=marked.module.clone(num_classes=classes),
        variables={**marked.variables, "params": params},
    )
    method = training(
        start,
        images,
        jnp.asarray(labels),
        loss=LOSS,
        optimizer=settings.rule(),
        batch_size=settings.batch_size,
        augment=settings.augment,
        fine_tune=True,
    )

    def read(state) -> Removed:
        classifier = trained(start, state)
        suspect = with_private_head(classifier, marked)
        words = "transfer to another task"
        return Removed(
            classifier,
            suspect,
            "transfer_learning",
            words,
            {"num_classes": classes, **settings.numbers()},
        )

    return carry_out(method, key, settings.steps, read, watch)


__all__ = ["transfer_learning"]
