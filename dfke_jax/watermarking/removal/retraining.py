"""Removal by retraining: a fresh network learns what the marked one answers."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.training import trained, training
from dfke_jax.watermarking.removal.common import (
    LOSS,
    Removed,
    TrainingSettings,
    Watch,
    carry_out,
    check_attacker,
)

RETRAINING = TrainingSettings(
    steps=2000, optimizer="adam", learning_rate=2e-3, weight_decay=0.0, cosine=True
)
"""Adam along a cosine, as networks are trained from scratch."""


def retraining(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    answers: Literal["soft", "hard"] = "soft",
    temperature: float = 4.0,
    student: Classifier | None = None,
    settings: TrainingSettings = RETRAINING,
    watch: Watch | None = None,
) -> Removed:
    """Trains a fresh network on the marked one's answers to the attacker's images; their labels are
    not needed.

    ``soft``: τ² · KL(σ(t/τ) ‖ σ(s/τ)).  ``hard``: cross-entropy with argmax t. What the student
    never sees answered, such as triggers far from the images, it has no reason to learn.

    Args:
      answers: ``soft`` or ``hard``.
      temperature: τ of soft answers.
      student: network that is trained; one like the marked by default.
      settings: of the training. With augmentation the marked network answers every batch, otherwise
        each image once.

    Raises:
      UnknownNameError: for other answers. InputError: for a temperature that is not positive,
        images that do not fit.

    Source: Shafieinejad et al., On the Robustness of the Backdoor-based Watermarking in Deep Neural
    Networks, IH&MMSec 2021, section 4 (black-box attack, hard answers); Hinton et al. 2015 (soft).
    """
    if answers not in ("soft", "hard"):
        raise UnknownNameError("kind of answers", answers, ("soft", "hard"))
    if not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    check_attacker(marked, images, None)
    student = student or marked
    if student.num_classes != marked.num_classes or student.input_shape != marked.input_shape:
        raise InputError(
            f"the student takes {student.input_shape} to {student.num_classes} classes, the marked "
            f"network {marked.input_shape} to {marked.num_classes}"
        )
    common = {
        "loss": Partial(_soft, float(temperature)) if answers == "soft" else LOSS,
        "optimizer": settings.rule(),
        "batch_size": settings.batch_size,
    }
    if settings.augment is not None:
        teacher = marked if answers == "soft" else Partial(_label, marked)
        method = training(
            student, images, None, teacher=teacher, augment=settings.augment, **common
        )
    else:
        table = jnp.asarray(marked.predict(np.asarray(images)))
        method = training(
            student, images, table if answers == "soft" else jnp.argmax(table, -1), **common
        )
    numbers = {"answers": answers, "temperature": temperature, **settings.numbers()}

    def read(state) -> Removed:
        made = trained(student, state)
        return Removed(
            made, made, f"{answers}_retraining", f"retraining on {answers} answers", numbers
        )

    return carry_out(method, key, settings.steps, read, watch)


def _soft(temperature: Array, logits: Array, answers: Array) -> Array:
    return response_kl(logits, answers, temperature)


def _label(marked: Classifier, images: Array) -> Array:
    return jnp.argmax(marked(images), -1)


__all__ = ["RETRAINING", "retraining"]
