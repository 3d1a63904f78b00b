"""Transfer sets that nobody synthesised: noise, images of something else, a few real ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array
from dfke_jax.nn.classifier import as_float
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.fitting import fitted

PIECE = 250
"""Images that are moved together."""


def balanced(
    images: np.ndarray, teacher: WhiteBox, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A transfer set with equally many samples of every class *as the teacher sees them*.

    Classes with too few rows repeat them, which only augmentation during distillation tells apart;
    classes that the teacher never answers stay empty. `balanced_by_moving` fills both.

    Args:
      images: (N, H, W, C).
      teacher: labels them.
      count: rows wanted.
      seed: of the draw.

    Returns:
      images (count, H, W, C) and how many rows each class had before balancing (K,).

    Raises:
      InputError: when the teacher answers one class only.

    Source: Nayak et al., WACV 2021 (effectiveness of arbitrary transfer sets). Deviation: the paper
    perturbs images to fill classes; here rows are repeated and augmented.
    """
    predicted = teacher.predict(images).argmax(1)
    counts = np.bincount(predicted, minlength=teacher.num_classes)
    if np.count_nonzero(counts) < 2:
        raise InputError(
            f"the teacher sees class {predicted[0]} in all {len(images)} images of this transfer "
            "set, which cannot be balanced"
        )
    return images[balanced_rows(predicted, count, seed)], counts


def balanced_rows(answers: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Numbers (count,) of rows, equally many of every class that is answered, to a row.

    Args:
      answers: the teacher's classes (N,). count: rows wanted. seed: of the draw.
    """
    present = np.unique(answers)
    rng = np.random.default_rng(seed)
    shares = np.full(len(present), count // len(present))
    shares[: count - shares.sum()] += 1
    rows = []
    for label, share in zip(present, shares, strict=True):
        members = rng.permutation(np.flatnonzero(answers == label))
        rows.append(np.resize(members, share))
    return np.concatenate(rows)


class Moved(NamedTuple):
    """A transfer set that was balanced by moving images.

    Attributes:
      images: (count, H, W, C). counts: rows that each class had before (K,).
      moved: images that were moved. asked: rows that the teacher answered or was differentiated at.
    """

    images: np.ndarray
    counts: np.ndarray
    moved: int
    asked: int


def balanced_by_moving(
    images: np.ndarray,
    teacher: WhiteBox,
    count: int,
    seed: int = 0,
    *,
    steps: int = 50,
    step_size: float = 0.02,
) -> Moved:
    """A transfer set with equally many samples of *every* class, the rare ones made from others.

    A class k with too few rows gets images of other classes, moved by x ← clip(x − a·sign ∇_x H(k,
    p_T(x))) until the teacher answers k. Those that never arrive are replaced by repeats.

    Args:
      images, teacher, count, seed: as of `balanced`.
      steps: most steps of an image. step_size: a, in pixels.

    Raises:
      InputError: for numbers outside their range, or a class that no image could be moved to.

    Source: Nayak et al., WACV 2021. Deviation: size and number of steps are chosen here.
    """
    if steps < 1 or not step_size > 0 or count < teacher.num_classes:
        raise InputError(
            "steps must be at least 1, step_size positive and count at least the number of "
            f"classes, got {steps}, {step_size} and {count}"
        )
    classes, rng = teacher.num_classes, np.random.default_rng(seed)
    answers = teacher.predict(images).argmax(1)
    counts = np.bincount(answers, minlength=classes)
    shares = np.full(classes, count // classes)
    shares[: count - shares.sum()] += 1
    parts, moved, asked = [], 0, len(images)
    for label, share in enumerate(shares):
        own = images[rng.permutation(np.flatnonzero(answers == label))[:share]]
        wanted = share - len(own)
        if wanted:
            others = np.flatnonzero(answers != label)
            start = images[np.resize(rng.permutation(others), wanted)]
            arrived = _moved(teacher, start, label, steps, step_size)
            moved, asked = moved + wanted, asked + wanted * (steps + 1)
            own = np.concatenate([own, arrived])
        if not len(own):
            raise InputError(f"no image could be moved to class {label} in {steps} steps")
        parts.append(own[np.resize(np.arange(len(own)), share)])
    return Moved(np.concatenate(parts), counts, moved, asked)


def _moved(
    teacher: WhiteBox, images: np.ndarray, label: int, steps: int, step_size: float
) -> np.ndarray:
    """Those of the images that reach a class, after moving."""
    found = []
    low, high = teacher.preprocessing.box
    for start in range(0, len(images), PIECE):
        piece = as_float(jnp.asarray(images[start : start + PIECE]))
        fill = [(0, PIECE - len(piece))] + [(0, 0)] * 3
        made, there = _walk(
            teacher, jnp.pad(piece, fill), jnp.int32(label), jnp.int32(steps), step_size, low, high
        )
        found.append(np.asarray(made)[: len(piece)][np.asarray(there)[: len(piece)]])
    return np.concatenate(found)


@jax.jit
def _walk(
    teacher: WhiteBox,
    images: Array,
    label: Array,
    steps: Array,
    step_size: Array,
    low: Array,
    high: Array,
) -> tuple[Array, Array]:
    labels = jnp.full(len(images), label)

    def loss(x: Array) -> tuple[Array, Array]:
        logits = teacher(x)
        return jnp.sum(cross_entropy(logits, labels)), logits

    def step(_: Array, x: Array) -> Array:
        slope, logits = jax.grad(loss, has_aux=True)(x)
        there = (jnp.argmax(logits, -1) == label)[:, None, None, None]
        return jnp.where(there, x, jnp.clip(x - step_size * jnp.sign(slope), low, high))

    x = jax.lax.fori_loop(0, steps, step, images)
    return x, jnp.argmax(teacher(x), -1) == label


def unbalanced(images: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` rows of a transfer set as they come, without replacement where there are enough."""
    rng = np.random.default_rng(seed)
    return images[np.resize(rng.permutation(len(images)), count)]


def few_shot(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Numbers (count,) of rows, equally many of every label, to a row, none twice.

    Args:
      labels: (N,). count: rows wanted, at least one a class. seed: of the draw.

    Raises:
      InputError: for fewer rows than classes, or more than a class has.

    Source: Kimura et al., Few-shot learning of neural networks from scratch by pseudo example
    optimization, BMVC 2018, which distils from 200 real images.
    """
    labels = np.asarray(labels)
    present, members = np.unique(labels, return_counts=True)
    most = len(present) * int(members.min())
    if not len(present) <= count <= most:
        raise InputError(
            f"between {len(present)} and {most} rows can be drawn equally from {len(present)} "
            f"classes, got {count}"
        )
    return balanced_rows(labels, count, seed)


__all__ = [
    "Moved",
    "balanced",
    "balanced_by_moving",
    "balanced_rows",
    "few_shot",
    "fitted",
    "unbalanced",
]
