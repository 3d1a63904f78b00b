"""Images of one data set in the shape of another's."""

import jax
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.nn.classifier import check_images


def fitted(images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Brings images of another data set to (H, W, C): bilinear resizing, grey from colour by the
    mean, colour by repetition.

    Args:
      images: (N, h, w, c), uint8 or float in [0, 1].
      shape: (H, W, C) with C in {1, 3, c}.

    Returns:
      float32 (N, H, W, C) in [0, 1].
    """
    images = np.asarray(images)
    check_images(images, images.shape[1:], (0.0, 1.0))
    images = (
        images.astype(np.float32) / 255 if images.dtype == np.uint8 else images.astype(np.float32)
    )
    height, width, channels = shape
    if images.shape[3] != channels:
        if channels == 1:
            images = images.mean(3, keepdims=True)
        elif images.shape[3] == 1:
            images = images.repeat(channels, 3)
        else:
            raise InputError(f"cannot turn images of {images.shape[3]} channels into {channels}")
    if images.shape[1:3] != (height, width):
        images = np.asarray(
            jax.image.resize(images, (len(images), height, width, channels), "bilinear")
        )
    return np.clip(images, 0, 1)


__all__ = ["fitted"]
