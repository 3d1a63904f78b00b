"""Zhang's watermarks: images with an overlay, with a noise pattern, or of something else, all
taught one label.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Augmentation, Key
from dfke_jax.nn.classifier import Classifier, as_float, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser, training
from dfke_jax.watermarking.commitments import MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import RankedEvidence, answered, ranked_evidence
from dfke_jax.watermarking.triggers import TriggerSet, trigger_set

_LETTERS = {
    "T": ("###", ".#.", ".#.", ".#.", ".#."),
    "E": ("###", "#..", "###", "#..", "###"),
    "S": ("###", "#..", "###", "..#", "###"),
}


def word_overlay(shape: tuple[int, int, int]) -> np.ndarray:
    """(H, W, C) float32, 1 where ink is: as much of TEST, in letters of 3×5 pixels, as fits into
    the lower left corner.

    Raises:
      InputError: for images below 5×3.
    """
    height, width, channels = shape
    fits = min(4, (width + 1) // 4)
    if height < 5 or fits < 1:
        raise InputError(
            f"a letter needs 5×3 pixels, images are {height}×{width}; give an overlay of your own"
        )
    ink = np.zeros((height, width), np.float32)
    for place, letter in enumerate("TEST"[:fits]):
        drawn = np.array([[pixel == "#" for pixel in row] for row in _LETTERS[letter]], np.float32)
        ink[height - 5 :, 4 * place : 4 * place + 3] = drawn
    return np.repeat(ink[..., None], channels, -1)


def content_triggers(
    key: Key,
    images: Array,
    labels: Array,
    *,
    source: int,
    target: int,
    num_classes: int,
    count: int = 100,
    overlay: Any = None,
) -> TriggerSet:
    """max(x, overlay) of images of one class, taught another one.

    Args:
      key: of the choice of images.
      images: (N, H, W, C). labels: (N,).
      source: c_S. target: the label they are taught, another one.
      num_classes: K.
      count: T, at most the images of class c_S.
      overlay: (H, W, C) in [0, 1]; `word_overlay` by default.

    Raises:
      InputError: for classes that are one, too few images, or an overlay of another shape or
        outside the box.

    Source: Zhang et al., Protecting Intellectual Property of Deep Neural Networks with
    Watermarking, AsiaCCS 2018, section 4.1, WM_content.
    """
    chosen = _chosen(key, images, labels, source, target, count)
    overlay = word_overlay(chosen.shape[1:]) if overlay is None else np.asarray(overlay, np.float32)
    if overlay.shape != chosen.shape[1:] or not ((overlay >= 0) & (overlay <= 1)).all():
        raise InputError(f"an overlay is {chosen.shape[1:]} in [0, 1], got shape {overlay.shape}")
    return trigger_set(jnp.maximum(chosen, overlay[None]), jnp.full(count, target), num_classes)


def noise_triggers(
    key: Key,
    images: Array,
    labels: Array,
    *,
    source: int,
    target: int,
    num_classes: int,
    count: int = 100,
    scale: float = 0.3,
) -> TriggerSet:
    """clip(x + n, 0, 1) of images of one class, n ~ N(0, scale²) one secret pattern, taught another
    one.

    Arguments and errors are those of `content_triggers`; `scale` > 0 in pixel units.

    Source: Zhang et al. 2018, section 4.1, WM_noise. The pattern is drawn once, so that the owner
    can make more triggers.
    """
    if not scale > 0:
        raise InputError(f"scale must be positive, got {scale}")
    choice_key, noise_key = jax.random.split(key)
    chosen = _chosen(choice_key, images, labels, source, target, count)
    pattern = scale * np.asarray(jax.random.normal(noise_key, chosen.shape[1:]))
    return trigger_set(jnp.clip(chosen + pattern[None], 0, 1), jnp.full(count, target), num_classes)


def unrelated_triggers(
    key: Key, images: Array, *, target: int, num_classes: int, count: int = 100
) -> TriggerSet:
    """Images of another data set (of this one's shape), taught one label.

    Args:
      key: of the choice of images. images: (N, H, W, C). target: their label. num_classes: K.
        count: T ≤ N.

    Raises:
      InputError: for too few images, or a label out of range.

    Source: Zhang et al. 2018, section 4.1, WM_unrelated.
    """
    if not 1 <= count <= len(images):
        raise InputError(f"{count} triggers from {len(images)} images; give 1 to {len(images)}")
    rows = jax.random.choice(key, len(images), (count,), replace=False)
    return trigger_set(jnp.asarray(images)[rows], jnp.full(count, target), num_classes)


def _chosen(
    key: Key, images: Array, labels: Array, source: int, target: int, count: int
) -> np.ndarray:
    if source == target:
        raise InputError(
            f"source and target are both class {source}; a trigger needs a label that it would not "
            "get"
        )
    rows = np.flatnonzero(np.asarray(labels) == source)
    if not 1 <= count <= len(rows):
        raise InputError(
            f"{count} triggers from {len(rows)} images of class {source}; take fewer or another "
            "class"
        )
    picked = rows[np.asarray(jax.random.permutation(key, len(rows)))[:count]]
    return np.asarray(as_float(jnp.asarray(images)[picked]))


def trigger_training(
    classifier: Classifier,
    images: Array,
    labels: Array,
    triggers: TriggerSet,
    *,
    steps: int,
    batch_size: int = 128,
    triggers_per_batch: int = 4,
    learning_rate: float = 2e-3,
    augment: Augmentation | None = None,
    fine_tune: bool = False,
) -> Method:
    """Cross-entropy on the union of clean images and triggers: some triggers stand beside every
    clean batch.

    Args:
      classifier: the network; `fine_tune` begins from its variables, otherwise fresh ones are
        drawn.
      images: (N, H, W, C). labels: (N,).
      triggers: of any of the functions here, or `trigger_set`.
      steps: length of the cosine schedule of Adam; run the method for that many.
      batch_size, triggers_per_batch: clean images and triggers of a step. The paper mixes both into
        one training set; a fixed share keeps the mark from depending on the size of the data.
      learning_rate, augment: of the training; triggers are not augmented.

    Raises:
      InputError: for labels or triggers that do not fit.
    """
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    return training(
        classifier,
        images,
        jnp.asarray(labels, jnp.int32),
        loss=Partial(cross_entropy),
        optimizer=optimiser("adam", learning_rate, steps),
        batch_size=batch_size,
        augment=augment,
        companions=(triggers.images, triggers.labels),
        companions_per_batch=triggers_per_batch,
        fine_tune=fine_tune,
    )


def verify_triggers(
    suspect: Any,
    triggers: TriggerSet,
    independents: Sequence[Any],
    *,
    commitment: MarkCommitment | None = None,
) -> RankedEvidence:
    """Triggers that a suspect answers with their label, ranked among independent networks.

    All triggers have one label and fall together, so 1/K is wrong in both directions, and so is a
    binomial test with a measured rate, which takes them for independent: the larger of its p-value
    and the rank's decides. A claim at level α takes 1/α − 1 independent networks at least.

    Args:
      suspect: a `Classifier`, an oracle, or a function images -> scores or labels.
      triggers: T of them. independents: M networks of the task that never saw a trigger, the
        suspect not among them.
      commitment: published before; the verdict names it as missing otherwise.

    Raises:
      InputError: for no independent network, or triggers that do not open the commitment.
    """
    assumes = mark_assumptions(triggers, commitment)
    found, *null = (
        int((answered(one, triggers.images) == np.asarray(triggers.labels)).sum())
        for one in (suspect, *independents)
    )
    evidence = ranked_evidence(found, np.array(null, int), len(triggers.labels))
    return evidence._replace(assumes=(*assumes, *evidence.assumes))


__all__ = [
    "content_triggers",
    "noise_triggers",
    "trigger_training",
    "unrelated_triggers",
    "verify_triggers",
    "word_overlay",
]
