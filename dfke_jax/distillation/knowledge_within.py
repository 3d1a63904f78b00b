"""The knowledge within: images of the stored Gaussians, of a class, and smooth."""

import dataclasses
from typing import ClassVar

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Key
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.priors import gaussian_smoothness, normalisation_statistics
from dfke_jax.synthesis.starts import SynthesisSettings
from dfke_jax.synthesis.synthesiser import Synthesis


@dataclasses.dataclass(frozen=True)
class WithinSettings(SynthesisSettings):
    """How images are matched to stored Gaussians. All numbers are this project's.

    Attributes:
      steps, learning_rate: of Adam on pixels. statistics, one_hot, smoothness: weights of the
        terms.
      sigma: width in pixels of the Gaussian of the smoothness term.
      start, start_mean, start_sd, start_blur: of the start images.
    """

    steps: int = 500
    learning_rate: float = 0.05
    statistics: float = 1.0
    one_hot: float = 1.0
    smoothness: float = 0.1
    sigma: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not min(self.statistics, self.one_hot, self.smoothness) >= 0 or not self.sigma > 0:
            raise InputError(
                "weights must not be negative and sigma be positive, got "
                f"{self.statistics}, {self.one_hot}, {self.smoothness} and {self.sigma}"
            )


def knowledge_within(
    teacher: WhiteBox,
    settings: WithinSettings,
    count: int,
    batch_size: int,
    *,
    control: bool = False,
) -> Method:
    """Fills a pool with images whose normalisation inputs have the stored means and variances.

    min_x w_s·Σ_layers Σ_channels KL(N(μ̂, σ̂²) ‖ N(μ, σ²)) + w_o·mean_b CE(T(x_b), y_b) + w_g·mean
    ‖x − g_σ * x‖²

    with the batch's mean μ̂ and biased variance σ̂² of every normalisation layer's input; y_b
    balanced.

    Args:
      teacher: frozen, with batch normalisation.
      settings: see `WithinSettings`. count: N, a multiple of `batch_size`; sample r is of class r
        mod K.
      batch_size: samples whose statistics are matched together. control: return the start images as
        they are.

    Returns:
      A `Method` over `Pool` with metric ``loss``.

    Raises:
      InputError: for a network without batch normalisation.

    Source: Haroush, Hubara, Hoffer and Soudry, The Knowledge Within: Methods for Data-Free Model
      Compression, CVPR 2020: the divergence of Gaussians, the class term and the smoothness.
    """
    check_teacher(teacher, "knowledge_within")
    return _Within(
        teacher=teacher, settings=settings, count=count, batch_size=batch_size, control=control
    ).method()


@record
class _Within(Synthesis[WithinSettings]):
    independent: ClassVar[bool] = False  # statistics are of the batch

    def loss(self, key: Key, images: Array, wanted: Array) -> Array:
        s = self.settings
        seen = self.teacher.observe(images, moments=True)
        own = s.one_hot * cross_entropy(seen.logits, wanted) + s.smoothness * gaussian_smoothness(
            images, s.sigma
        )
        return own + s.statistics * normalisation_statistics(seen.moments, "kl")


__all__ = ["WithinSettings", "knowledge_within"]
