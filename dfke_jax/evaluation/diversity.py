"""How varied a pool of synthetic images is."""

from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import check_images, check_labels


def class_histogram(labels: Any, num_classes: int) -> np.ndarray:
    """Samples per class, (K,) integers.

    Args:
      labels: integers (N,) in [0, K); classes may be absent.

    Raises:
      InputError: for labels of another kind, or none.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise InputError(f"labels must be (N,) and not empty, got shape {labels.shape}")
    check_labels(labels, len(labels), num_classes, every_class=False)
    return np.bincount(labels, minlength=num_classes)


def histogram_entropy(counts: Any, *, normalised: bool = False) -> float:
    """−Σ_k p_k ln p_k of p = counts / Σ counts, in nats: from 0 (all in one class) to ln K (all
    alike).

    Args:
      counts: (K,), not negative, not all zero; empty classes contribute 0.
      normalised: whether to divide by ln K, so that an even histogram has 1.

    Raises:
      InputError: for other counts, or `normalised` with fewer than two classes.
    """
    counts = np.asarray(counts, np.float64)
    if (
        counts.ndim != 1
        or not np.isfinite(counts).all()
        or (counts < 0).any()
        or not counts.sum() > 0
    ):
        raise InputError(f"counts must be (K,), not negative and not all zero, got {counts}")
    if normalised and len(counts) < 2:
        raise InputError("the entropy over one class cannot be normalised: it is always 0")
    shares = counts[counts > 0] / counts.sum()
    entropy = max(0.0, -float(np.sum(shares * np.log(shares))))
    return entropy / float(np.log(len(counts))) if normalised else entropy


def mean_pairwise_distance(images: Any, sample: int = 500, seed: int = 0) -> float:
    """Mean Euclidean distance of the pairs among at most `sample` images, drawn without
    replacement.

    Args:
      images: (N, H, W, C), N ≥ 2, floats, or uint8, which are divided by 255.
      sample: at least 2; with N or more all pairs are measured.
      seed: of the draw.

    Raises:
      InputError: for images of another kind, NaN, or fewer than two images.
    """
    from scipy.spatial.distance import pdist

    images = np.asarray(images)
    if images.ndim != 4:
        raise InputError(f"images must be (N, H, W, C), got shape {images.shape}")
    check_images(images, images.shape[1:], (-np.inf, np.inf))
    if len(images) < 2 or sample < 2:
        raise InputError(
            f"a distance needs two images, got {len(images)} images and a sample of {sample}"
        )
    if len(images) > sample:
        images = images[np.random.default_rng(seed).choice(len(images), sample, replace=False)]
    rows = images.reshape(len(images), -1).astype(np.float64) / (
        255 if images.dtype == np.uint8 else 1
    )
    return float(pdist(rows).mean())


__all__ = ["class_histogram", "histogram_entropy", "mean_pairwise_distance"]
