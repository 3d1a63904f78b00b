"""What images are inverted against in CMI and its kin: statistics, classes, the student."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy, response_kl
from dfke_jax.nn.observation import Moments, Observed
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.latent import LatentObjective
from dfke_jax.synthesis.priors import StatisticsForm, normalisation_statistics


class Weights(Protocol):
    """What an inversion's terms weigh."""

    @property
    def statistics(self) -> float: ...
    @property
    def one_hot(self) -> float: ...
    @property
    def adversarial(self) -> float: ...
    @property
    def form(self) -> StatisticsForm: ...


class Averages(NamedTuple):
    """Running averages over batches of the moments of every normalisation layer's input.

    Attributes:
      mean, var: by layer, (C,) each. batches: () int32, how many were averaged.
    """

    mean: tuple[Array, ...]
    var: tuple[Array, ...]
    batches: Array


def no_averages(teacher: WhiteBox) -> Averages:
    """Averages of no batch."""
    if teacher.lacks("moments"):
        return Averages((), (), jnp.zeros((), jnp.int32))
    images = jax.ShapeDtypeStruct((2, *teacher.input_shape), jnp.float32)
    moments = jax.eval_shape(lambda images: teacher.observe(images, moments=True).moments, images)
    zeros = lambda name: tuple(jnp.zeros(getattr(layer, name).shape) for layer in moments)
    return Averages(zeros("mean"), zeros("var"), jnp.zeros((), jnp.int32))


def blended(moments: tuple[Moments, ...], averages: Averages, keep: float) -> tuple[Moments, ...]:
    """(1 − m)·batch + m·average, m = `keep`; the batch alone while nothing was averaged."""
    share = jnp.where(averages.batches > 0, keep, 0.0)
    mix = lambda new, old: (1 - share) * new + share * old
    return tuple(
        layer._replace(mean=mix(layer.mean, mean), var=mix(layer.var, var))
        for layer, mean, var in zip(moments, averages.mean, averages.var, strict=True)
    )


def averaged(moments: tuple[Moments, ...], averages: Averages, keep: float) -> Averages:
    """The averages with one more batch: m·average + (1 − m)·batch, the first one as it is."""
    new = jax.lax.stop_gradient(blended(moments, averages, keep))
    return Averages(tuple(m.mean for m in new), tuple(m.var for m in new), averages.batches + 1)


def inversion_loss(
    weights: Weights,
    teacher: WhiteBox,
    student: Classifier,
    images: Array,
    labels: Array,
    competes: Array,
    *,
    averages: Averages | None = None,
    keep: float = 0.0,
    activations: bool = False,
) -> tuple[Array, Observed, Metrics]:
    """w_s·R(x) + w_o·CE(T(x), y) − w_a·mean_b [argmax T = argmax S]·KL(p_T ‖ p_S).

    R is the distance of the batch's normalisation statistics from the stored ones
    (`dfke_jax.synthesis.priors.normalisation_statistics`). The student is in evaluation mode; where
    it puts an image into another class than the teacher, the image is hard enough and pushed no
    further.

    Args:
      weights: of the terms; one of weight 0 is not computed.
      images: (B, H, W, C), as the networks shall see them. labels: (B,).
      competes: (), factor of the third term: 0 while there is no student worth the name.
      averages, keep: see `blended`; without them R is of the batch alone.
      activations: whether the teacher's hidden layers are collected, for further terms.

    Returns:
      The loss (), what the teacher shows, and the terms without their weights.
    """
    seen = teacher.observe(images, activations=activations, moments=bool(weights.statistics))
    loss, terms = jnp.zeros(()), {}
    if weights.statistics:
        moments = seen.moments if averages is None else blended(seen.moments, averages, keep)
        terms["statistics"] = normalisation_statistics(moments, weights.form)
        loss += weights.statistics * terms["statistics"]
    if weights.one_hot:
        terms["one_hot"] = jnp.mean(cross_entropy(seen.logits, labels))
        loss += weights.one_hot * terms["one_hot"]
    if weights.adversarial:
        ours = student(images)
        agree = jax.lax.stop_gradient(jnp.argmax(ours, -1) == jnp.argmax(seen.logits, -1))
        apart = response_kl(ours, seen.logits, through_teacher=True)
        terms["adversarial"] = -jnp.mean(jnp.where(agree, apart, 0.0))
        loss += weights.adversarial * competes * terms["adversarial"]
    return loss, seen, terms


def averaging_objective(
    weights: Weights,
    teacher: WhiteBox,
    student: Classifier,
    labels: Array,
    competes: Array,
    augment: Augmentation | None,
    averages: Averages,
    keep: float,
) -> LatentObjective:
    """`inversion_loss` of augmented images, statistics blended with their averages; beside it stand
    its terms and the batch's moments.
    """

    def objective(key: Key, images: Array, optimised: dict[str, PyTree]) -> tuple[Array, PyTree]:
        seen_as = images if augment is None else augment(key, images)
        loss, seen, terms = inversion_loss(
            weights, teacher, student, seen_as, labels, competes, averages=averages, keep=keep
        )
        return loss, (terms, jax.lax.stop_gradient(seen.moments))

    return objective


__all__ = [
    "Averages",
    "Weights",
    "averaged",
    "averaging_objective",
    "blended",
    "inversion_loss",
    "no_averages",
]
