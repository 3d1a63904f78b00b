"""Private and public samples: what they must be before anything is tested on them."""

import hashlib
from typing import Any

import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import check_labels

Pair = tuple[np.ndarray, np.ndarray]
"""Images (N, ...) and labels (N,)."""


def overlap(
    private: Any, public: Any, box: tuple[float, float] = (0.0, 1.0)
) -> list[tuple[int, int]]:
    """Pairs (i, j) of private and public images that are equal at 8 bits a pixel, by SHA-256.

    Args:
      private, public: (N, ...) floats in the box, or uint8.
      box: lowest and highest pixel value of floats.
    """
    where: dict[bytes, int] = {}
    for i, image in enumerate(np.asarray(private)):
        where.setdefault(_digest(image, box), i)
    return [
        (where[mark], j)
        for j, image in enumerate(np.asarray(public))
        if (mark := _digest(image, box)) in where
    ]


def distinct(images: Any, box: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Places of the images that do not repeat an earlier one at 8 bits a pixel, in order.

    Args:
      images: (N, ...) floats in the box, or uint8.
      box: lowest and highest pixel value of floats.
    """
    first: dict[bytes, int] = {}
    for i, image in enumerate(np.asarray(images)):
        first.setdefault(_digest(image, box), i)
    return np.fromiter(first.values(), int, len(first))


def _digest(image: np.ndarray, box: tuple[float, float]) -> bytes:
    if image.dtype != np.uint8:
        image = np.round(255 * np.clip((image - box[0]) / (box[1] - box[0]), 0, 1)).astype(np.uint8)
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()


def checked_samples(samples: tuple[Any, Any], what: str, box: tuple[float, float]) -> Pair:
    """(images, labels) as float32 in the box and integers.

    Raises:
      InputError: not a pair, NaN, values outside the box, labels that do not belong to the images.
    """
    try:
        images, labels = samples
    except (TypeError, ValueError):
        raise InputError(f"{what} samples must be a pair (images, labels)") from None
    images, labels = checked_images(images, what, box), np.asarray(labels)
    check_labels(
        labels,
        len(images),
        max(int(np.max(labels, initial=0)) + 1, 2),
        f"{what} labels",
        every_class=False,
    )
    return images, labels


def checked_images(images: Any, what: str, box: tuple[float, float]) -> np.ndarray:
    """(N, ...) as float32 in the box.

    Raises:
      InputError: no samples, NaN, values outside the box.
    """
    images = np.asarray(images)
    if images.ndim < 2 or not len(images):
        raise InputError(
            f"{what} images must be (N, ...) with at least one sample, got shape {images.shape}"
        )
    if images.dtype == np.uint8:
        images = np.float32(box[0]) + np.float32(box[1] - box[0]) * images.astype(np.float32) / 255
    images = images.astype(np.float32)
    if not np.isfinite(images).all():
        raise InputError(f"{what} images contain NaN or infinity")
    if images.min() < box[0] - 1e-6 or images.max() > box[1] + 1e-6:
        raise InputError(
            f"{what} images must lie in [{box[0]}, {box[1]}], got {images.min():.4g} to "
            f"{images.max():.4g}"
        )
    return images


__all__ = ["Pair", "checked_images", "checked_samples", "distinct", "overlap"]
