"""Distillation of an encoder: a student learns to give the representations that a teacher gave."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.method import Method, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.contrastive import feature_width, nt_xent
from dfke_jax.nn.losses import logit_l2
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.players import Learner
from dfke_jax.nn.training import Training, learn, optimiser

Match = Literal["mse", "nt_xent"]
MATCHES = ("mse", "nt_xent")


def representation_distillation(
    student: Classifier,
    images: Array,
    answers: Array,
    *,
    loss: Match = "mse",
    temperature: float = 0.5,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
) -> Method:
    """Trains a student's `features` on a table of representations: how an encoder is stolen from
    its answers.

    ``mse``: (1/D) Σ_d (s_d − t_d)². ``nt_xent``: the student's and the teacher's representation of
    an image are a positive pair among those of the batch's other images, see `nn.nt_xent`; it fixes
    directions and leaves lengths free.

    Args:
      student: the network to train, its `features` as wide as the answers; fresh parameters are
        drawn. Its own last layer takes no part.
      images: (N, H, W, C) on the device, uint8 or float in [0, 1]: what was asked.
      answers: (N, D), what was answered: each row asked once.
      loss, temperature: of the match.
      steps: length of the cosine schedule; run the method for that many.
      batch_size, learning_rate, optimizer: of the training.

    Returns:
      A `Method` over `nn.Training` with metric ``loss``.

    Raises:
      InputError: answers of another number or width, NaN among them, or a batch size that the loss
        cannot take.

    Source: Dziedzic, Dhawan, Kaleem, Guan, Papernot, On the Difficulty of Defending Self-Supervised
    Learning against Model Extraction, ICML 2022. Deviation: images are not augmented; batches are
    drawn without replacement.
    """
    if loss not in MATCHES:
        raise UnknownNameError("loss between representations", loss, MATCHES)
    if not 2 <= batch_size <= images.shape[0]:
        raise InputError(
            f"batch_size must lie in [2, {images.shape[0]}], the number of images, got {batch_size}"
        )
    if temperature <= 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    width = feature_width(student)
    if jnp.shape(answers) != (images.shape[0], width):
        raise InputError(
            f"answers must be ({images.shape[0]}, {width}), a row for each image as wide as the "
            f"student's features, got shape {jnp.shape(answers)}"
        )
    if not np.isfinite(np.asarray(answers)).all():
        raise InputError("answers contain NaN or infinity")
    rule = optimiser(optimizer, learning_rate, steps)
    match = Partial(_squared) if loss == "mse" else Partial(_contrast, float(temperature))
    return as_method(
        _Representations(
            learner=Learner.of(student, rule),
            images=images,
            answers=answers,
            match=match,
            batch_size=batch_size,
        )
    )


def _squared(rows: Array, answers: Array) -> Array:
    return logit_l2(rows, answers)


def _contrast(temperature: Array, rows: Array, answers: Array) -> Array:
    return nt_xent(rows, answers, temperature)


@record
class _Representations:
    images: Array
    answers: Array
    match: Partial
    learner: Learner = static_field()
    batch_size: int = static_field()

    def init(self, key: Key) -> Training:
        return self.learner.new(key)

    def step(self, key: Key, state: Training) -> tuple[Training, Metrics]:
        row_key, dropout_key = jax.random.split(key)
        chosen = jax.random.choice(row_key, self.images.shape[0], (self.batch_size,), replace=False)
        images = constrain_samples(as_float(self.images[chosen]))
        inputs = self.learner.preprocessing(images)

        def mean_loss(seen: Observed, _: PyTree) -> tuple[Array, None]:
            found = seen.activations["features"].astype(jnp.float32)
            return jnp.mean(self.match(found, self.answers[chosen])), None

        of, rule = self.learner.module, self.learner.optimizer
        state, loss, _ = learn(
            of, rule, state, inputs, mean_loss, key=dropout_key, activations=True
        )
        return state, {"loss": loss}


__all__ = ["MATCHES", "Match", "representation_distillation"]
