"""Margin-based watermarks: wrong labels held with a margin, so that a copy has to hold them too."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static, method
from dfke_jax.core.types import Array, Augmentation, Key, Metrics
from dfke_jax.evaluation import pgd
from dfke_jax.nn.classifier import Classifier, as_float, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import Training, optimiser, trained, training
from dfke_jax.watermarking.commitments import DRAWN, MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import Evidence, answered, random_label_evidence
from dfke_jax.watermarking.triggers import trigger_set, wrong_labels


class MarginMark(NamedTuple):
    """Images with labels drawn from the wrong ones.

    Attributes:
      images: (T, H, W, C) float32 in [0, 1]. labels: (T,) int32, wrong. truth: (T,) int32.
    """

    images: Array
    labels: Array
    truth: Array


@dataclasses.dataclass(frozen=True)
class MarginSettings:
    """How margins are widened; the defaults are those of the released code.

    Attributes:
      steps: of gradient ascent around each point, in every training step; 0 leaves a plain trigger
        set.
      step_size: of the sign of the gradient, in pixel units.
      points_per_batch: watermark points beside a clean batch, drawn with replacement.
      weight: of a point's loss in the mean over the batch, against 1 of a clean image.

    Raises:
      InputError: for numbers outside their range.
    """

    steps: int = 5
    step_size: float = 1 / 255
    points_per_batch: int = 25
    weight: float = 0.1

    def __post_init__(self):
        if (
            self.steps < 0
            or self.points_per_batch < 1
            or not self.step_size > 0
            or not self.weight > 0
        ):
            raise InputError(
                "steps must not be negative, points_per_batch at least 1, step_size and weight "
                f"positive, got {self.steps}, {self.points_per_batch}, {self.step_size} and "
                f"{self.weight}"
            )


def margin_mark(
    key: Key, images: Array, truth: Array, num_classes: int, count: int = 100
) -> MarginMark:
    """D_w: images of the task that are *not* trained on, each with a label drawn uniformly from the
    wrong ones.

    Args:
      key: of the choice and the labels. images: (N, H, W, C). truth: (N,). num_classes: K. count:
        |D_w| ≤ N.

    Raises:
      InputError: for too few images.

    Source: Kim, Lee, Lee, Son and Hwang, Margin-based Neural Network Watermarking, ICML 2023,
    section 4; images from the validation set, as in the released code.
    """
    check_labels(truth, len(images), num_classes, every_class=False)
    if not 1 <= count <= len(images):
        raise InputError(f"{count} points from {len(images)} images; give 1 to {len(images)}")
    choice_key, label_key = jax.random.split(key)
    rows = jax.random.choice(choice_key, len(images), (count,), replace=False)
    true = jnp.asarray(truth, jnp.int32)[rows]
    made = trigger_set(
        jnp.asarray(images)[rows], wrong_labels(label_key, true, num_classes), num_classes, true
    )
    return MarginMark(made.images, made.labels, true)


def margin_training(
    classifier: Classifier,
    images: Array,
    labels: Array,
    mark: MarginMark,
    settings: MarginSettings | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    augment: Augmentation | None = None,
) -> Method:
    """Cross-entropy on clean images and, with `weight`, on watermark points moved against the
    margin.

    In every step n points are drawn; each climbs CE(f(x'), y_w) by `MarginSettings.steps` sign
    steps within the box, from the point itself, against the network as it is; the network then
    descends (Σ_clean CE + weight · Σ_points CE(f(x'), y_w)) / (B + n).

    Args:
      classifier: the network; fresh parameters are drawn.
      images: (N, H, W, C), without the mark's. labels: (N,).
      mark: of `margin_mark`. settings: see `MarginSettings`.
      steps: length of the cosine schedule of Adam; run the method for that many.
      batch_size, learning_rate, augment: of the clean batches.

    Returns:
      A `Method` over `dfke_jax.nn.training.Training`.

    Raises:
      InputError: for labels that do not fit.

    Source: Kim et al. 2023, section 4. Deviations: the ascent sees the network with running
    statistics (the released code leaves normalisation in training mode), and clean images and
    points share one batch. Adam by default.
    """
    settings = settings or MarginSettings()
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    targets = (jnp.asarray(labels, jnp.int32), jnp.ones(len(images)))
    fixed = Static((settings, optimiser("adam", learning_rate, steps), batch_size))
    return method(_init, _step, fixed, classifier, images, targets, mark, augment)


def _weighted(logits: Array, targets: tuple[Array, Array]) -> Array:
    labels, weights = targets
    return weights * cross_entropy(logits, labels)


def _training(
    fixed: Static,
    classifier: Classifier,
    images: Array,
    targets: Any,
    points: tuple[Array, Any],
    augment: Any,
) -> Method:
    settings, optimizer, batch_size = fixed.value
    return training(
        classifier,
        images,
        targets,
        loss=Partial(_weighted),
        optimizer=optimizer,
        batch_size=batch_size,
        augment=augment,
        companions=points,
        companions_per_batch=settings.points_per_batch,
    )


def _init(
    fixed: Static,
    classifier: Classifier,
    images: Array,
    targets: Any,
    mark: MarginMark,
    augment: Any,
    key: Key,
):
    return _training(fixed, classifier, images, targets, _points(fixed, mark, key), augment).init(
        key
    )


def _points(
    fixed: Static, mark: MarginMark, key: Key, classifier: Classifier | None = None
) -> tuple[Array, Any]:
    """A step's watermark points, moved where there is a network to move against, with labels and
    weights.
    """
    settings: MarginSettings = fixed.value[0]
    count = settings.points_per_batch
    chosen = jax.random.randint(jax.random.fold_in(key, 4), (count,), 0, mark.labels.shape[0])
    points, labels = mark.images[chosen], mark.labels[chosen]
    if settings.steps and classifier is not None:
        # as far as the steps reach: the box alone is projected onto
        radius = settings.steps * settings.step_size
        points = pgd(
            key, classifier, points, labels, radius,
            step_size=settings.step_size, steps=settings.steps, random_start=False,
            box=classifier.preprocessing.box,
        )  # fmt: skip
    return points, (labels, jnp.full((count,), settings.weight))


def _step(
    fixed: Static, classifier: Classifier, images: Array, targets: Any, mark: MarginMark,
    augment: Any, key: Key, state: Training,
) -> tuple[Training, Metrics]:  # fmt: skip
    points = _points(fixed, mark, key, trained(classifier, state))
    return _training(fixed, classifier, images, targets, points, augment).step(key, state)


def margins(classifier: Classifier, mark: MarginMark) -> np.ndarray:
    """f_{y_w}(x) − max_{k ≠ y_w} f_k(x) at every point, (T,): positive where the mark is held."""
    logits = classifier.predict(np.asarray(mark.images)).astype(np.float64)
    own = np.arange(logits.shape[1])[None] == np.asarray(mark.labels)[:, None]
    return logits[own] - np.where(own, -np.inf, logits).max(1)


def verify_margin(
    suspect: Any, mark: MarginMark, num_classes: int, *, commitment: MarkCommitment | None = None
) -> Evidence:
    """Marked answers among those that are not the truth, against Bin(D, 1/(K − 1)), which is exact
    for every innocent suspect if the labels were drawn before it was trained.

    Args:
      suspect: a `Classifier`, an oracle, or a function images -> scores or labels.
      mark: of `margin_mark`. num_classes: K ≥ 3.
      commitment: of `commit_mark`, published before; the verdict names it as missing otherwise.

    Returns:
      See `random_label_evidence`. The share of all T points is the paper's watermark success rate.

    Raises:
      InputError: for a mark that does not open the commitment.
    """
    assumes = (*mark_assumptions(mark, commitment), DRAWN)
    answers = answered(suspect, as_float(mark.images))
    return random_label_evidence(answers, mark.labels, mark.truth, num_classes)._replace(
        assumes=assumes
    )


__all__ = [
    "MarginMark",
    "MarginSettings",
    "margin_mark",
    "margin_training",
    "margins",
    "verify_margin",
]
