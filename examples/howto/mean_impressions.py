"""Mean impressions: images that a teacher puts into a class and whose mean brightness is given.

This is a whole method: settings, a loss an image, and a function that makes a `Method` of them.
"""

import dataclasses

import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.synthesis.starts import SynthesisSettings
from dfke_jax.synthesis.synthesiser import Synthesis


@dataclasses.dataclass(frozen=True)
class MeanSettings(SynthesisSettings):
    """How the images are made; ``steps``, ``learning_rate`` and ``start`` all syntheses have.

    Attributes:
      brightness: m in [0, 1], the mean that an image should have.
      weight: w ≥ 0, of the squared distance from it.
    """

    brightness: float = 0.2
    weight: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.brightness <= 1 or self.weight < 0:
            raise InputError(
                "brightness must lie in [0, 1] and weight must not be negative, "
                f"got {self.brightness} and {self.weight}"
            )


def mean_impressions(
    teacher: Classifier,
    settings: MeanSettings,
    count: int,
    batch_size: int,
    *,
    control: bool = False,
) -> Method:
    """Fills a pool with x = argmin CE(k, f(x)) + w·(mean(x) − m)²; sample r is of class r mod K.

    Args:
      teacher: f, frozen. settings: see `MeanSettings`. count: N, a multiple of `batch_size`.
      control: return the start images as they are.

    Returns:
      A `Method` over `Pool` with metric ``loss``, one batch a step.
    """
    return MeanImpressions(
        teacher=teacher, settings=settings, count=count, batch_size=batch_size, control=control
    ).method()


@record
class MeanImpressions(Synthesis[MeanSettings]):
    """Labels, start, control and optimisation are `Synthesis`'s; what is left is the loss."""

    def loss(self, key: Key, images: Array, wanted: Array) -> Array:
        """(B,) of images (B, H, W, C) that are wanted to be of classes (B,)."""
        away = images.mean((1, 2, 3)) - self.settings.brightness
        fit = cross_entropy(self.teacher(images), wanted)
        return fit + self.settings.weight * jnp.square(away)
