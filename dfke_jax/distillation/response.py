"""Knowledge distillation: a student learns a teacher's answers, on whatever images there are."""

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Augmentation
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import response_kl, response_mix
from dfke_jax.nn.supervised import cross_entropy_training
from dfke_jax.nn.training import Loss, optimiser, training
from dfke_jax.nn.whitebox import WhiteBox


def knowledge_distillation(
    student: Classifier,
    teacher: WhiteBox,
    images: Array,
    *,
    labels: Array | None = None,
    label_weight: float = 0.0,
    temperature: float = 20.0,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
    augment: Augmentation | None = None,
    fine_tune: bool = False,
) -> Method:
    """Trains a student on τ²·KL(p_T^τ ‖ p_S^τ), the teacher answering every augmented batch.

    With labels: λ·CE(p_S, y) + τ²·KL(p_T^τ ‖ p_S^τ).

    Args:
      student: gives the network to train; fresh parameters are drawn, unless `fine_tune`.
      teacher: frozen.
      images: (N, H, W, C) on the device: a pool of synthesised samples, real data, or any transfer
        set.
      labels, label_weight: labels (N,) and λ. Data-free methods use neither.
      temperature: τ.
      steps: length of the cosine schedule; run the method for that many.
      batch_size, learning_rate, optimizer: of the training.
      augment: applied before both networks see the batch. Without it the teacher's answers are a
        fixed table.
      fine_tune: begin from the student's own variables, such as those of `hint_training`.

    Returns:
      A `Method` over `dfke_jax.nn.training.Training`.

    Source: Hinton, Vinyals, Dean 2015. Deviation: batches are drawn with replacement.
    """
    if label_weight < 0 or (labels is None) != (label_weight == 0):
        raise InputError("labels and label_weight > 0 go together")
    loss = response_loss(temperature)
    rule = optimiser(optimizer, learning_rate, steps)
    common = {"optimizer": rule, "batch_size": batch_size, "augment": augment}
    common["fine_tune"] = fine_tune
    if labels is not None:
        if augment is not None:
            raise InputError(
                "labels can be mixed in without augmentation only: the teacher's answers are "
                "aligned with them"
            )
        mix = Partial(_mix, float(temperature), float(label_weight))
        return training(
            student, images, (table_of_answers(teacher, images), labels), loss=mix, **common
        )
    if augment is None:
        return training(student, images, table_of_answers(teacher, images), loss=loss, **common)
    return training(student, images, None, loss=loss, teacher=teacher, **common)


def response_loss(temperature: float) -> Loss:
    """τ²·KL(p_T^τ ‖ p_S^τ) as a training loss of the student's and the teacher's logits."""
    if temperature <= 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    return Partial(_kl, float(temperature))


def table_of_answers(teacher: WhiteBox, images: Array, batch_size: int = 500) -> Array:
    """The teacher's logits (N, K) for every image, each computed once."""
    return jnp.asarray(teacher.predict(np.asarray(images), batch_size))


def _kl(temperature: Array, student_logits: Array, teacher_logits: Array) -> Array:
    return response_kl(student_logits, teacher_logits, temperature)


def _mix(
    temperature: Array, weight: Array, student_logits: Array, wanted: tuple[Array, Array]
) -> Array:
    return response_mix(student_logits, wanted[0], wanted[1], temperature, weight)


__all__ = ["cross_entropy_training", "knowledge_distillation", "response_loss", "table_of_answers"]
