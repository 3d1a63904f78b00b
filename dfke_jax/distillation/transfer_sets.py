"""Transfer sets that nobody synthesised: noise, and images of something else."""

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.fitting import fitted


def balanced(
    images: np.ndarray, teacher: WhiteBox, count: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A transfer set with equally many samples of every class *as the teacher sees them*.

    Classes with too few rows repeat them, which only augmentation during distillation tells apart;
    classes that the teacher never answers stay empty.

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
    present = np.flatnonzero(counts)
    if len(present) < 2:
        raise InputError(
            f"the teacher sees class {present[0]} in all {len(images)} images of this transfer "
            "set, which cannot be balanced"
        )
    rng = np.random.default_rng(seed)
    shares = np.full(len(present), count // len(present))
    shares[: count - shares.sum()] += 1
    rows = []
    for label, share in zip(present, shares, strict=True):
        members = rng.permutation(np.flatnonzero(predicted == label))
        rows.append(np.resize(members, share))
    return images[np.concatenate(rows)], counts


def unbalanced(images: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` rows of a transfer set as they come, without replacement where there are enough."""
    rng = np.random.default_rng(seed)
    return images[np.resize(rng.permutation(len(images)), count)]


__all__ = ["balanced", "fitted", "unbalanced"]
