"""Radioactive data: images moved in feature space, so that whoever trains on them moves his
classifier the same way.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier, as_float, check_images, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.watermarking.commitments import MarkCommitment, mark_assumptions
from dfke_jax.watermarking.evidence import fisher, rank_p_value


@flax.struct.dataclass
class RadioactiveMark:
    """What the owner keeps.

    Attributes:
      directions: u_c, (K, D), unit vectors in the feature space of the marking network.
      marker: the marking network, trained on unmarked data.
    """

    directions: Array
    marker: Classifier


@dataclasses.dataclass(frozen=True)
class RadioactiveSettings:
    """How images are moved.

    Attributes:
      radius: largest change of a pixel (L∞), in pixel units.
      steps: of Adam. learning_rate: of Adam, in pixel units.
      feature_weight: λ₁ of the distance in feature space. image_weight: λ₂ of the squared distance
        of pixels.

    Raises:
      InputError: for numbers outside their range.
    """

    radius: float = 10 / 255
    steps: int = 60
    learning_rate: float = 1 / 255
    feature_weight: float = 0.01
    image_weight: float = 5e-4

    def __post_init__(self):
        if not (0 < self.radius <= 1 and self.learning_rate > 0) or self.steps < 1:
            raise InputError(
                "radius must lie in (0, 1], learning_rate be positive and steps at least 1, got "
                f"{self.radius}, {self.learning_rate} and {self.steps}"
            )
        if min(self.feature_weight, self.image_weight) < 0:
            raise InputError(
                f"weights must not be negative, got {self.feature_weight} and {self.image_weight}"
            )


def radioactive_mark(key: Key, marker: Classifier) -> RadioactiveMark:
    """One direction a class, uniform on the sphere of the marking network's features."""
    width, classes = marker.head_kernel.shape
    drawn = jax.random.normal(key, (classes, width))
    return RadioactiveMark(drawn / jnp.linalg.norm(drawn, axis=1, keepdims=True), marker)


def radioactive_images(
    mark: RadioactiveMark,
    images: Array,
    labels: Array,
    settings: RadioactiveSettings | None = None,
    *,
    batch_size: int = 500,
) -> np.ndarray:
    """min_x' −⟨φ(x') − φ(x), u_y⟩ + λ₁ ‖φ(x') − φ(x)‖ + λ₂ ‖x' − x‖² within ‖x' − x‖_∞ ≤ R and the
    box, then rounded to 256 levels.

    Args:
      mark: of `radioactive_mark`.
      images: (N, H, W, C) of the training set, uint8 or in [0, 1]. labels: (N,).
      settings: see `RadioactiveSettings`.
      batch_size: images side by side.

    Returns:
      (N, H, W, C) uint8, within R (and half a level) of the images.

    Raises:
      InputError: for images or labels that do not fit.

    Source: Sablayrolles, Douze, Schmid and Jégou, Radioactive Data, ICML 2020, section 3.2.
    Deviations: Adam in the place of SGD, whose step follows the scale of the features; no
    augmentation between image and features; the released code rounds on the way and truncates in
    the end.
    """
    settings = settings or RadioactiveSettings()
    pixels = np.asarray(images)
    check_images(pixels, mark.marker.input_shape, (0.0, 1.0))
    check_labels(labels, len(pixels), len(mark.directions), every_class=False)
    wanted = np.asarray(labels)
    batch_size, made = min(batch_size, len(pixels)), []
    for start in range(0, len(pixels), batch_size):
        # the last batch is filled up, so one program serves
        rows = np.arange(start, start + batch_size) % len(pixels)
        moved = _moved(
            mark,
            jnp.asarray(pixels[rows]),
            jnp.asarray(wanted[rows]),
            dataclasses.astuple(settings),
        )
        made.append(np.asarray(moved)[: len(pixels) - start])
    return np.concatenate(made)


@jax.jit
def _moved(mark: RadioactiveMark, images: Array, labels: Array, numbers: tuple) -> Array:
    radius, steps, learning_rate, feature_weight, image_weight = numbers
    images = as_float(images)
    low, high = jnp.maximum(images - radius, 0), jnp.minimum(images + radius, 1)
    before, wanted = mark.marker.features(images), mark.directions[labels]
    rule = optax.adam(learning_rate)

    def loss(x: Array) -> Array:
        shift = mark.marker.features(x) - before
        # the norm has no gradient at 0, where every image begins
        length = jnp.sqrt(jnp.sum(jnp.square(shift), 1) + 1e-12)
        distance = jnp.sum(jnp.square(x - images), (1, 2, 3))
        return jnp.sum(
            -jnp.sum(shift * wanted, 1) + feature_weight * length + image_weight * distance
        )

    def step(_: Array, state: Any) -> Any:
        x, memory = state
        updates, memory = rule.update(jax.grad(loss)(x), memory)
        return jnp.clip(x + updates, low, high), memory

    x, _ = jax.lax.fori_loop(0, steps, step, (images, rule.init(images)))
    return jnp.round(255 * x).astype(jnp.uint8)


def cosine_p_value(cosine: Any, dimension: int) -> Any:
    """P(cos(u, v) ≥ t) = ½ I_{1−t²}((d−1)/2, ½) for t ≥ 0, of a uniform direction u and any v; one
    minus that below 0.

    Args:
      cosine: t in [−1, 1], a number or an array. dimension: d ≥ 2.

    Raises:
      InputError: for numbers outside their range.

    Source: Iscen, Furon, Gripon, Rabbat and Jégou, 2017; Sablayrolles et al. 2020, equation 3.
    """
    from scipy.special import betainc

    t = np.asarray(cosine, np.float64)
    if dimension < 2 or not (np.abs(t) <= 1 + 1e-9).all():
        raise InputError(
            f"cosines in [-1, 1] of at least 2 dimensions are needed, got {t} of {dimension}"
        )
    tail = betainc((dimension - 1) / 2, 0.5, np.clip(1 - t**2, 0, 1)) / 2
    found = np.where(t >= 0, tail, 1 - tail)
    return float(found) if found.ndim == 0 else found


def aligned_rows(marker: Classifier, suspect: Classifier, images: Any) -> np.ndarray:
    """The suspect's classifier rows in the marker's feature space, (K, D).

    X = argmin ‖F_marker X − F_suspect‖ over the images; a row w becomes X w, because F_suspect w ≈
    F_marker (X w).

    Args:
      marker, suspect: networks of the same task; widths of features may differ.
      images: (N, H, W, C) unmarked, N at least the marker's width; not those that were marked.

    Raises:
      InputError: for too few images, or networks of other classes.

    Source: Sablayrolles et al. 2020, section 3.4.
    """
    if marker.num_classes != suspect.num_classes:
        raise InputError(
            f"the marker has {marker.num_classes} classes, the suspect {suspect.num_classes}"
        )
    first, second = (_features(one, images) for one in (marker, suspect))
    if len(first) < first.shape[1]:
        raise InputError(
            f"{len(first)} images cannot align {first.shape[1]} features; give at least as many"
        )
    map_ = np.linalg.lstsq(first, second, rcond=None)[0]
    return (map_ @ np.asarray(suspect.head_kernel, np.float64)).T


def _features(classifier: Classifier, images: Any) -> np.ndarray:
    images = np.asarray(images)
    check_images(images, classifier.input_shape, classifier.preprocessing.box)
    size = min(1000, len(images))
    parts = []
    for start in range(0, len(images), size):
        rows = np.arange(start, start + size) % len(images)
        parts.append(np.asarray(_of(classifier, images[rows]), np.float64)[: len(images) - start])
    return np.concatenate(parts)


@jax.jit
def _of(classifier: Classifier, images: Array) -> Array:
    return classifier.features(as_float(images))


class RadioactiveVerdict(NamedTuple):
    """What the classifier rows of a suspect say.

    Attributes:
      cosines: (K,) of the aligned rows with u_c. p_values: (K,) of each.
      p_value: all combined by Fisher's method; the directions are independent of one another and of
        an innocent suspect, so it is exact.
      assumes: what has to be true for that.
    """

    cosines: np.ndarray
    p_values: np.ndarray
    p_value: float
    assumes: tuple[str, ...] = ()


def verify_radioactive(
    suspect: Classifier,
    mark: RadioactiveMark,
    images: Any,
    *,
    commitment: MarkCommitment | None = None,
) -> RadioactiveVerdict:
    """Whether a suspect's rows lean towards the directions: white-box.

    Args:
      suspect: its parameters are read. mark: of `radioactive_mark`. images: as for `aligned_rows`.
      commitment: to the mark's directions, `commit_mark(mark.directions)`, published before; the
        verdict names it as missing otherwise.

    Raises:
      InputError: as `aligned_rows`; a suspect whose rows vanish, or directions that do not open the
        commitment.
    """
    assumes = (
        *mark_assumptions(mark.directions, commitment),
        "directions were drawn at random and chosen by nobody",
    )
    return leaning(aligned_rows(mark.marker, suspect, images), mark.directions)._replace(
        assumes=assumes
    )


def leaning(rows: Any, directions: Any) -> RadioactiveVerdict:
    """Cosines of rows (K, D) with directions (K, D), and how often uniform directions lean as much.

    Exact over the draw of the directions. Networks of one task have similar rows, so with *one*
    draw they are accused, or not, together: count false alarms over many draws.

    Raises:
      InputError: shapes that differ, or a row or direction that vanishes.
    """
    rows, directions = np.asarray(rows, np.float64), np.asarray(directions, np.float64)
    if rows.shape != directions.shape or rows.ndim != 2:
        raise InputError(
            f"rows and directions must both be (K, D), got {rows.shape} and {directions.shape}"
        )
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(directions, axis=1)
    if not (lengths > 0).all():
        raise InputError(
            "a classifier row vanishes in the marker's features; its direction is not defined"
        )
    cosines = (rows * directions).sum(1) / lengths
    p_values = cosine_p_value(cosines, directions.shape[1])
    return RadioactiveVerdict(cosines, p_values, fisher(p_values))


def loss_gain(suspect: Any, images: Any, marked: Any, labels: Any) -> float:
    """Mean of ℓ(x, y) − ℓ(x', y): how much easier marked images are than the same ones unmarked.

    Args:
      suspect: a `Classifier`, or a function images -> logits (N, K).
      images, marked: (N, H, W, C), of the owner, *not* trained on by anybody. labels: (N,).

    Raises:
      InputError: for another number of images or labels, or answers that are no logits.

    Source: Sablayrolles et al. 2020, section 3.5 (black-box test).
    """
    if np.shape(images) != np.shape(marked):
        raise InputError(
            f"marked images are those unmarked: {np.shape(images)} and {np.shape(marked)} differ"
        )
    predict = getattr(suspect, "predict", suspect)
    logits = [
        jnp.asarray(predict(np.asarray(as_float(jnp.asarray(side))))) for side in (images, marked)
    ]
    if logits[0].ndim != 2:
        raise InputError(f"the black-box test reads logits (N, K), got shape {logits[0].shape}")
    check_labels(labels, len(logits[0]), logits[0].shape[1], every_class=False)
    plain, moved = (
        np.asarray(cross_entropy(side, jnp.asarray(labels)), np.float64) for side in logits
    )
    return float((plain - moved).mean())


def verify_radioactive_black_box(
    suspect: Any, images: Any, marked: Any, labels: Any, independents: Sequence[Any]
) -> tuple[float, float]:
    """(`loss_gain` of a suspect, its rank p-value among independent networks).

    Marking may by itself make images easier or harder, for every network alike, so the gain is
    compared with that of networks which never saw marked data and not with zero.
    """
    gain = loss_gain(suspect, images, marked, labels)
    return gain, rank_p_value(
        gain, [loss_gain(one, images, marked, labels) for one in independents]
    )


__all__ = [
    "RadioactiveMark",
    "RadioactiveSettings",
    "RadioactiveVerdict",
    "aligned_rows",
    "cosine_p_value",
    "leaning",
    "loss_gain",
    "radioactive_images",
    "radioactive_mark",
    "verify_radioactive",
    "verify_radioactive_black_box",
]
