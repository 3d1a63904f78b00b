"""Class impressions: images that a class's logit rises on, with random transformations between the
steps.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Augmentation, Key, Metrics
from dfke_jax.data.augment import affine
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.noise import Synthesised
from dfke_jax.synthesis.starts import Range, SynthesisSettings
from dfke_jax.synthesis.synthesiser import Options, Synthesis


@dataclasses.dataclass(frozen=True)
class ClassImpressionSettings(SynthesisSettings):
    """How class impressions are made.

    Attributes:
      steps: most updates per sample.
      learning_rate: of Adam.
      confidence: a sample stops when the softmax of its class reaches a threshold of its own,
        uniform on this range; the spread of thresholds is one source of diversity.
      rotation: radians; scaling: (low, high); shift: pixels. The random transformation between the
        updates.
      start: ``uniform``, ``gaussian`` or ``smooth``; with start_mean, start_sd and start_blur, each
        (low, high).
    """

    steps: int = 200
    learning_rate: float = 0.1
    confidence: Range = (0.55, 0.99)
    rotation: float = 0.1
    scaling: Range = (0.95, 1.05)
    shift: float = 1.0
    start: Literal["uniform", "gaussian", "smooth"] = "uniform"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.confidence[0] <= self.confidence[1] <= 1:
            raise InputError(
                f"confidence must be (low, high) with 0 < low <= high <= 1, got {self.confidence}"
            )


def class_impressions(
    teacher: WhiteBox,
    settings: ClassImpressionSettings,
    count: int,
    batch_size: int,
    *,
    control: bool = False,
) -> Method:
    """Fills a pool with class impressions.

    x_c = argmax_x z_c(x), z_c the logit of class c before the softmax, by Adam on the pixels;
    between the updates the image itself is randomly rotated, scaled and shifted,

    x ← transform(clip(x + Adam(∇_x z_c(x)))),

    and it stops, before its next update, when softmax(z(x))_c reaches its threshold: the image that
    is kept is the one whose confidence was measured. No transformation follows the last update.

    Args:
      teacher: frozen.
      settings: see `ClassImpressionSettings`.
      count: N, a multiple of `batch_size`; sample r is of class r mod K.
      batch_size: samples side by side; independent of one another.
      control: return the start images as they are.

    Returns:
      A `Method` over `Pool`; metrics ``loss``, ``reached`` (share whose kept image has its
      threshold's confidence), ``updates`` (mean taken).

    Source: Mopuri, Uppala, Babu, ECCV 2018. Deviations: cropping and colour shifts of the ImageNet
    recipe are left out for small images; Adam's moments are not transformed with the image.
    """
    return _Impressions(
        teacher=teacher, settings=settings, count=count, batch_size=batch_size, control=control
    ).method()


@record
class _Impressions(Synthesis[ClassImpressionSettings]):
    # one draw of the transformation's key serves the whole batch
    independent: ClassVar[bool] = False

    def wanted(self, key: Key, labels: Array, rows: Array) -> tuple[Array, Array]:
        """Labels (B,), and the confidence (B,) to stop at."""
        low, high = self.settings.confidence
        return labels, jax.random.uniform(key, (self.batch_size,), minval=low, maxval=high)

    def objective(
        self, key: Key, images: Array, wanted: tuple[Array, Array]
    ) -> tuple[Array, Array]:
        logits, labels = self.teacher(images), wanted[0]
        of_class = lambda values: jnp.take_along_axis(values, labels[:, None], 1)[:, 0]
        return -of_class(logits), of_class(jax.nn.softmax(logits))

    def rule(self, key: Key) -> optax.GradientTransformation:
        settings, plain = self.settings, super().rule(key)
        if not (settings.rotation or settings.shift or settings.scaling != (1.0, 1.0)):
            return plain
        transform = affine(settings.rotation, settings.scaling, settings.shift)
        box = self.teacher.preprocessing.box
        # the objective draws nothing, so that the key is the transformations' alone
        return _with_moves_between(plain, transform, key, settings.steps, box)

    def options(self, wanted: tuple[Array, Array]) -> Options:
        return {"stop_at": wanted[1]}

    def metrics(self, made: Synthesised, wanted: tuple[Array, Array]) -> Metrics:
        return {
            "loss": jnp.mean(made.loss),
            "reached": jnp.mean((made.confidence >= wanted[1]).astype(jnp.float32)),
            "updates": jnp.mean(made.steps.astype(jnp.float32)),
        }


def _with_moves_between(
    rule: optax.GradientTransformation,
    transform: Augmentation,
    key: Key,
    steps: int,
    box: tuple[float, float],
) -> optax.GradientTransformation:
    """`rule`, whose updates lead to the transformed image: x + update = transform(clip(x + rule's
    update)).

    Update i draws from ``fold_in(key, i)``; the last one of `steps` is left as it is.
    """

    def init(images: Array) -> tuple[optax.OptState, Array]:
        return rule.init(images), jnp.zeros((), jnp.int32)

    def update(
        gradient: Array, state: tuple[optax.OptState, Array], images: Array
    ) -> tuple[Array, tuple[optax.OptState, Array]]:
        inner, count = state
        change, inner = rule.update(gradient, inner, images)
        moved = jnp.clip(images + change, *box)  # type: ignore[operator]
        turned = transform(jax.random.fold_in(key, count), moved)
        return jnp.where(count < steps - 1, turned, moved) - images, (inner, count + 1)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


__all__ = ["ClassImpressionSettings", "class_impressions"]
