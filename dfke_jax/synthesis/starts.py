"""Images to begin with, and to stand for no synthesis at all in the matched control."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array, Key

Range = tuple[float, float]


def uniform_noise(key: Key, shape: tuple[int, ...]) -> Array:
    """Pixels drawn independently from U(0, 1); `shape` is (B, H, W, C)."""
    return jax.random.uniform(key, shape)


def gaussian_noise(key: Key, shape: tuple[int, ...], mean: float = 0.0, sd: float = 0.1) -> Array:
    """Pixels drawn independently from N(mean, sd²) and clipped to [0, 1]."""
    return jnp.clip(mean + sd * jax.random.normal(key, shape), 0, 1)


def smooth_noise(
    key: Key,
    shape: tuple[int, ...],
    mean: Range = (0.0, 1.0),
    sd: Range = (0.0, 1.0),
    blur: Range = (1.0, 4.0),
) -> Array:
    """Blurred Gaussian noise with a level and a contrast of its own for every image.

    x = clip(m + s·g, 0, 1), where g is white noise blurred by a Gaussian of width σ (pixels) and
    divided by its standard deviation; m ~ U(mean), s ~ U(sd), σ ~ U(blur), drawn per image.

    The defaults of `mean` and `sd` are blind: they presume nothing about the data but the box. Give
    equal ends to fix a value.

    Args:
      key: PRNG key.
      shape: (B, H, W, C).
      mean, sd, blur: (low, high).
    """
    batch, height, width, _channels = shape
    keys = jax.random.split(key, 4)
    draw = lambda key, ends: jax.random.uniform(
        key, (batch, 1, 1, 1), minval=ends[0], maxval=ends[1]
    )
    level, contrast, sigma = draw(keys[0], mean), draw(keys[1], sd), draw(keys[2], blur)[:, 0, 0, 0]

    def kernel(size: int) -> Array:  # (B, size, size), rows sum to one
        distance = jnp.square(jnp.arange(size)[:, None] - jnp.arange(size)[None, :]).astype(
            jnp.float32
        )
        weights = jnp.exp(-distance[None] / (2 * jnp.square(sigma)[:, None, None]))
        return weights / weights.sum(-1, keepdims=True)

    noise = jax.random.normal(keys[3], shape)
    blurred = jnp.einsum("bij,bjwc,bvw->bivc", kernel(height), noise, kernel(width))
    deviation = blurred.std((1, 2, 3), keepdims=True)
    return jnp.clip(level + contrast * blurred / jnp.maximum(deviation, 1e-6), 0, 1)


def start_images(
    kind: str,
    key: Key,
    shape: tuple[int, ...],
    *,
    mean: Range = (0.0, 1.0),
    sd: Range = (0.0, 1.0),
    blur: Range = (1.0, 4.0),
) -> Array:
    """Start images by name: ``uniform``, ``gaussian`` (mean[0], sd[0]) or ``smooth``.

    Raises:
      UnknownNameError: for another name.
    """
    if kind == "uniform":
        return uniform_noise(key, shape)
    if kind == "gaussian":
        return gaussian_noise(key, shape, mean[0], sd[0])
    if kind == "smooth":
        return smooth_noise(key, shape, mean, sd, blur)
    raise UnknownNameError("start distribution", kind, ("uniform", "gaussian", "smooth"))


@dataclasses.dataclass(frozen=True)
class SynthesisSettings:
    """What the settings of every method that optimises noise have in common; each has defaults of
    its own.

    Attributes:
      steps: updates per sample, >= 1.
      learning_rate: of Adam.
      start: ``uniform``, ``gaussian`` or ``smooth``.
      start_mean, start_sd, start_blur: of `start_images`, each (low, high).
    """

    steps: int = 1000
    learning_rate: float = 0.01
    start: Literal["uniform", "gaussian", "smooth"] = "gaussian"
    start_mean: Range = (0.0, 1.0)
    start_sd: Range = (0.0, 1.0)
    start_blur: Range = (1.0, 4.0)

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(
                f"synthesis needs at least one step, got {self.steps}; the control arm shows what "
                "none gives"
            )

    def draw(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Start images (B, H, W, C)."""
        return start_images(
            self.start, key, shape, mean=self.start_mean, sd=self.start_sd, blur=self.start_blur
        )


__all__ = [
    "Range",
    "SynthesisSettings",
    "gaussian_noise",
    "smooth_noise",
    "start_images",
    "uniform_noise",
]
