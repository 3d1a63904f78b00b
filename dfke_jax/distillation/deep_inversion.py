"""DeepDream prior, DeepInversion and adaptive DeepInversion."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.distillation.response import response_loss
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import cross_entropy, jensen_shannon
from dfke_jax.nn.training import Training, on_images, optimiser, trained, training
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.noise import Parametrisation
from dfke_jax.synthesis.pool import Pool, added
from dfke_jax.synthesis.priors import (
    StatisticsForm,
    l2_norm,
    normalisation_statistics,
    total_variation_l2,
)
from dfke_jax.synthesis.starts import Range, SynthesisSettings
from dfke_jax.synthesis.synthesiser import Options, Synthesis


@dataclasses.dataclass(frozen=True)
class InversionSettings(SynthesisSettings):
    """How images are inverted out of a network. Defaults follow the CIFAR-10 recipe of the
    DeepInversion authors.

    Attributes:
      steps: updates per batch (published: 2,000).
      learning_rate: of Adam, in units of the network's normalised input, of each channel by its own
        standard deviation (published: 0.05 to 0.1).
      statistics: α_f, weight of the normalisation-statistics prior (published: 10); 0 is the
        DeepDream prior.
      form: ``norm`` (released code), ``squared`` (as taught) or ``kl``.
      first_layer: weight of the first normalisation layer in that prior, >= 0 (10 in the authors'
        ImageNet recipe).
      total_variation: α_tv. l2: α_2.
      competition: α_c of adaptive DeepInversion.
      competition_temperature: τ of the Jensen-Shannon divergence.
      jitter: pixels rolled, one draw per step.
      parametrisation: ``clip`` keeps images in the box; the released CIFAR code leaves them
        ``free``.
      start: distribution of the start images; with start_mean, start_sd and start_blur, each (low,
        high).
    """

    steps: int = 2000
    learning_rate: float = 0.05
    statistics: float = 10.0
    form: StatisticsForm = "norm"
    first_layer: float = 1.0
    total_variation: float = 2.5e-5
    l2: float = 0.0
    competition: float = 10.0
    competition_temperature: float = 3.0
    jitter: int = 2
    parametrisation: Parametrisation = "clip"
    start_mean: Range = (0.5, 0.5)
    start_sd: Range = (0.5, 0.5)

    def __post_init__(self):
        super().__post_init__()
        if not self.first_layer >= 0:
            raise InputError(f"first_layer must not be negative, got {self.first_layer}")


def deep_inversion(
    teacher: WhiteBox,
    settings: InversionSettings,
    count: int,
    batch_size: int,
    *,
    control: bool = False,
) -> Method:
    """Fills a pool by DeepInversion, or with ``statistics=0`` by the DeepDream prior.

    min_x CE(T(x), y) + α_tv·TV(x) + α_2·‖x‖₂ + α_f·Σ_l ‖μ̂_l(x) − μ_l‖₂ + ‖σ̂²_l(x) − σ²_l‖₂

    with the batch's mean and biased variance of each normalisation layer's input; TV, norm and
    Adam's rate are those of the normalised image (x − mean) / std, channel by channel. The prior
    couples the samples of a batch, so `batch_size` is part of the method.

    Args:
      teacher: frozen, with batch normalisation unless ``statistics`` is 0.
      settings: see `InversionSettings`.
      count: N, a multiple of `batch_size`; sample r is of class r mod K.
      batch_size: samples whose statistics are matched together (published: 256).
      control: return the start images as they are.

    Returns:
      A `Method` over `Pool`.

    Raises:
      InputError: for a network without batch normalisation.

    Source: Yin et al., CVPR 2020, and its released CIFAR-10 code. Deviations: images stay in the
    box by default and start from `settings` there (released: N(0, 1) in normalised units), and the
    last iterate is kept (the released "best" images are the last iterate too, by an aliasing
    error).
    """
    check_teacher(
        teacher, "deep_inversion" if settings.statistics else "deep_inversion(statistics=0)"
    )
    return _Inversion(
        teacher=teacher, settings=settings, count=count, batch_size=batch_size, control=control
    ).method()


class Adaptive(NamedTuple):
    """State of adaptive DeepInversion: the pool, and the student that images are made to divide
    from the teacher.
    """

    pool: Pool
    student: Training


def adaptive_deep_inversion(
    teacher: WhiteBox,
    student: Classifier,
    settings: InversionSettings,
    count: int,
    batch_size: int,
    *,
    student_steps: int = 50,
    temperature: float = 3.0,
    student_batch: int = 64,
    learning_rate: float = 1e-3,
    augment: Augmentation | None = None,
) -> Method:
    """Fills a pool by DeepInversion whose images also divide teacher and student.

    Adds α_c·(1 − JS(p_T ‖ p_S)) at temperature τ to the loss of `deep_inversion`; the student
    learns from the pool between batches, at a constant learning rate. The first batch is plain:
    there is no student yet. The student that counts is trained afterwards on the whole pool, like
    any other.

    Args:
      teacher, settings, count, batch_size: as for `deep_inversion`.
      student: gives the network.
      student_steps: distillation steps after each batch (published: 50).
      temperature, student_batch, learning_rate, augment: of that distillation.

    Returns:
      A `Method` over `Adaptive`.

    Source: Yin et al., CVPR 2020. Deviations: JS is computed in log space without the released
    clamp of probabilities to [0.01, 0.99], which has no gradient for confident samples; it is in
    units of log 2, so that it lies in [0, 1].
    """
    if settings.statistics:
        check_teacher(teacher, "adaptive_deep_inversion")
    synthesis = _Inversion(teacher=teacher, settings=settings, count=count, batch_size=batch_size)
    learning = training(
        student,
        jnp.zeros((1, *teacher.input_shape)),
        None,
        loss=response_loss(temperature),
        optimizer=optimiser("adam", learning_rate),
        batch_size=student_batch,
        augment=augment,
        teacher=teacher,
    )
    return as_method(
        _Adaptive(
            synthesis=synthesis, student=student, learning=learning, student_steps=student_steps
        )
    )


@record
class _Inversion(Synthesis[InversionSettings]):
    """Attributes beside those of `Synthesis`: opponent, of adaptive DeepInversion, a student and
    its weight ().
    """

    opponent: tuple[Classifier, Array] | None = None

    independent: ClassVar[bool] = False
    optimisation_key: ClassVar[int] = 1  # nothing is drawn for `wanted`

    @property
    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation (1, 1, 1, C): published images live in the network's normalised units."""
        each_channel, preprocessing = (
            (1, 1, 1, self.teacher.input_shape[-1]),
            self.teacher.preprocessing,
        )
        mean, std = (
            np.broadcast_to(v, each_channel) for v in (preprocessing.mean, preprocessing.std)
        )
        return mean, std

    def rule(self, key: Key) -> optax.GradientTransformation:
        # in normalised units the rate is one number
        rate = jnp.asarray(self.settings.learning_rate * self.units[1], jnp.float32)
        scaled = lambda updates, _: jax.tree.map(lambda u: -rate * u, updates)
        return optax.chain(optax.scale_by_adam(), optax.stateless(scaled))

    def loss(self, key: Key, images: Array, wanted: Array) -> Array:
        settings = self.settings
        prior = jnp.zeros(())
        if settings.statistics:
            logits, _, moments, _ = self.teacher.observe(images, moments=True)
            apart = normalisation_statistics(moments, settings.form, settings.first_layer)
            prior = prior + settings.statistics * apart
        else:
            logits = self.teacher(images)
        centre, spread = (jnp.asarray(v, jnp.float32) for v in self.units)
        normalised = (images - centre) / spread
        if settings.total_variation:
            prior = prior + settings.total_variation * total_variation_l2(normalised)
        if settings.l2:
            prior = prior + settings.l2 * l2_norm(normalised)
        loss = cross_entropy(logits, wanted)
        if self.opponent is not None:
            student, competes = self.opponent
            divergence = jensen_shannon(logits, student(images), settings.competition_temperature)
            loss = loss + competes * settings.competition * (1 - divergence / jnp.log(2.0))
        return loss + prior

    def options(self, wanted: Array) -> Options:
        return {"parametrisation": self.settings.parametrisation, "jitter": self.settings.jitter}


@record
class _Adaptive:
    synthesis: _Inversion
    student: Classifier
    learning: Method
    student_steps: int = static_field()

    def init(self, key: Key) -> Adaptive:
        pool_key, student_key = jax.random.split(key)
        return Adaptive(self.synthesis.method().init(pool_key), self.learning.init(student_key))

    def step(self, key: Key, state: Adaptive) -> tuple[Adaptive, Metrics]:
        synthesis_key, student_key = jax.random.split(key)
        pool = state.pool
        rows = pool.filled + jnp.arange(self.synthesis.batch_size, dtype=jnp.int32)
        # the first batch is plain: there is no student yet
        opponent = trained(self.student, state.student), (pool.filled > 0).astype(jnp.float32)
        batch = dataclasses.replace(self.synthesis, opponent=opponent)(synthesis_key, rows, ())
        pool = added(pool, batch)
        learn = on_images(self.learning, pool.images, pool.filled).step

        def body(carry: Training, i: Array) -> tuple[Training, Array]:
            carry, metrics = learn(jax.random.fold_in(student_key, i), carry)
            return carry, metrics["loss"]

        learner, losses = jax.lax.scan(body, state.student, jnp.arange(self.student_steps))
        return Adaptive(pool, learner), {**batch.metrics, "student_loss": losses[-1]}


__all__ = ["Adaptive", "InversionSettings", "adaptive_deep_inversion", "deep_inversion"]
