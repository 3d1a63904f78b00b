"""Mean impressions: images that a teacher puts into a class and whose mean brightness is given.

This is a whole method: settings, a loss an image, and a function that makes a `Method` of them.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser
from dfke_jax.synthesis.noise import optimise_noise
from dfke_jax.synthesis.pool import Batch, fill_pool
from dfke_jax.synthesis.starts import SynthesisSettings
from dfke_jax.synthesis.targets import balanced_labels


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
    teacher: Classifier, settings: MeanSettings, count: int, batch_size: int, *, control: bool = False
) -> Method:
    """Fills a pool with x = argmin CE(k, f(x)) + w·(mean(x) − m)²; sample r is of class r mod K.

    Args:
      teacher: f, frozen. settings: see `MeanSettings`. count: N, a multiple of `batch_size`.
      control: return the start images as they are.

    Returns:
      A `Method` over `Pool` with metric ``loss``, one batch a step.
    """
    # Arrays (the teacher's) are arguments of the compiled program; what is none is `Static`.
    batch = Partial(_batch, teacher, Static((settings, control, batch_size)))
    return fill_pool(batch, count, batch_size, teacher.input_shape)


def _batch(teacher: Classifier, static: Static, key: Key, rows: Array, carry: tuple) -> Batch:
    settings, control, batch_size = static.value
    start_key, noise_key = jax.random.split(key)
    labels = balanced_labels(rows, teacher.num_classes)
    # The start is drawn first, so that the control has the very images that the method begins with.
    start = settings.draw(start_key, (batch_size, *teacher.input_shape))
    if control:
        return Batch(start, labels, carry, {})

    def objective(key: Key, images: Array) -> tuple[Array, Array]:
        away = images.mean((1, 2, 3)) - settings.brightness
        loss = cross_entropy(teacher(images), labels) + settings.weight * jnp.square(away)
        return loss, jnp.zeros_like(loss)  # the second is for methods that stop at a confidence

    rule, box = optimiser("adam", settings.learning_rate), teacher.preprocessing.box
    steps = settings.steps
    made = optimise_noise(noise_key, objective, start, steps=steps, optimizer=rule, box=box)
    return Batch(made.images, labels, carry, {"loss": jnp.mean(made.loss)})
