"""A ready GAN as a transfer set: a student learns a teacher's answers to samples whose latents were
made hard for it.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import check_pair
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.answers import class_metrics
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.players import Learner
from dfke_jax.nn.precision import apply
from dfke_jax.nn.training import Training, optimiser
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How a student learns from a GAN's samples; the numbers are this project's.

    Attributes:
      batch_size: B. latent: Z of the generator.
      steps: of the student, which its cosine schedule spans; 0 keeps the rate constant.
      latent_steps: moves of every latent, 0 for none, the control. latent_rate: length of a move,
        in units of a latent's norm √Z.
      temperature: τ of the student's loss. student_optimizer, student_rate: see `optimiser`.

    Raises:
      InputError: for values that mean nothing.
    """

    batch_size: int = 128
    latent: int = 100
    steps: int = 0
    latent_steps: int = 2
    latent_rate: float = 0.1
    temperature: float = 1.0
    student_optimizer: str = "adam"
    student_rate: float = 2e-3

    def __post_init__(self):
        if min(self.batch_size, self.latent) < 1 or min(self.steps, self.latent_steps) < 0:
            raise InputError(
                "batch_size and latent must be at least 1, steps and latent_steps not negative"
            )
        for name in ("temperature", "student_rate", "latent_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")


def gan_sampling(
    generator: Partial, teacher: WhiteBox, student: Classifier, settings: SamplingSettings
) -> Method:
    """Distils on a fresh batch of samples at every step.

    z ~ N(0, I), then `latent_steps` times z ← z + η·√Z·∇/‖∇‖ with ∇ = ∇_z KL(p_T ‖ p_S) at G(z),
    the student in evaluation mode, and z is brought back to its norm; the student descends
    τ²·KL(p_T ‖ p_S) at the last G(z).

    Args:
      generator: latents (B, Z) -> images (B, H, W, C) of the teacher's box, a `Partial`; frozen.
      teacher: frozen. student: gives the network. settings: see `SamplingSettings`.

    Returns:
      A `Method` over `Training` with metrics ``loss``, ``gap`` (KL where the latents began),
      ``hard_gap`` (where they ended) and class metrics; `trained` makes a classifier of it.

    Raises:
      InputError: teacher and student of other answers, or a generator of other images.

    Source: Besnier, Jain, Bursuc, Cord and Pérez, This Dataset Does Not Exist: Training Models from
      Generated Images, ICASSP 2020 (2019): samples drawn anew, latents made hard, statistics adapted
      (`adapt_statistics`).
    Deviations: targets are a teacher's answers, where the paper has the classes of a conditional
      GAN; norms of moves and latents are this project's.
    """
    check_teacher(teacher, "gan_sampling")
    check_pair(teacher, student)
    z = jax.ShapeDtypeStruct((2, settings.latent), jnp.float32)
    shape = jax.eval_shape(generator, z).shape[1:]
    if shape != tuple(teacher.input_shape):
        raise InputError(f"the generator makes images of {shape}, not of {teacher.input_shape}")
    rule = optimiser(settings.student_optimizer, settings.student_rate, settings.steps)
    learner = Learner.of(student, rule)
    return as_method(
        _Sampling(generator=generator, teacher=teacher, settings=settings, learner=learner)
    )


def hard_latents(
    generator: Partial, teacher: WhiteBox, student: Classifier, settings: SamplingSettings, z: Array
) -> tuple[Array, Array]:
    """Latents (B, Z) where `gan_sampling` moves those that it is given, and the mean KL(p_T ‖ p_S)
    before every move (latent_steps,).
    """
    norm = settings.latent**0.5

    def gap(z: Array) -> Array:
        images = generator(z)
        theirs, ours = teacher(images), student(images)
        return jnp.mean(response_kl(ours, theirs, through_teacher=True))

    def move(z: Array, _: None) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(gap)(z)
        length = jnp.maximum(jnp.linalg.norm(slope, axis=-1, keepdims=True), _TINY)
        z = z + settings.latent_rate * norm * slope / length
        return norm * z / jnp.linalg.norm(z, axis=-1, keepdims=True), value

    return jax.lax.scan(move, z, None, length=settings.latent_steps)


def sampling_cost(settings: SamplingSettings) -> Cost:
    """What one step costs."""
    batch, moves = settings.batch_size, settings.latent_steps
    return Cost(
        samples=batch,
        teacher_forward=(moves + 1) * batch,
        teacher_backward=moves * batch,
        student_updates=1,
    )


def adapt_statistics(classifier: Classifier, images: Array) -> Classifier:
    """The classifier with the normalisation statistics of these images in the place of its own.

    Every layer gets mean and biased variance of what enters it in one pass of all images in
    training mode, in which the layers before it have normalised by the batch.

    Args:
      classifier: with batch normalisation. images: (N, H, W, C), unlabelled, of where it is used.

    Raises:
      InputError: without batch normalisation.

    Source: as `gan_sampling`.
    """
    if not classifier.has_normalisation:
        raise InputError(f"{classifier.name} has no batch normalisation to adapt")
    _, changed = apply(
        classifier.module,
        classifier.variables,
        classifier.preprocessing(as_float(images)),
        train=True,
        mutable=["batch_stats", "normalisation"],
        rngs={"dropout": jax.random.key(0)},
    )
    statistics = _statistics(changed["normalisation"])
    return dataclasses.replace(
        classifier, variables={**classifier.variables, "batch_stats": statistics}
    )


def _statistics(reported: Mapping) -> dict:
    """Moments as the layers report them, in the form of running statistics."""
    if "moments" in reported:
        mean, var = reported["moments"]
        return {"mean": mean, "var": var}
    return {name: _statistics(layer) for name, layer in reported.items()}


@record
class _Sampling:
    generator: Partial
    teacher: WhiteBox
    settings: SamplingSettings = static_field()
    learner: Learner = static_field()

    def init(self, key: Key) -> Training:
        return self.learner.new(key)

    def step(self, key: Key, state: Training) -> tuple[Training, Metrics]:
        s = self.settings
        latent_key, learn_key = jax.random.split(key)
        student = self.learner.classifier(state.variables)
        z = jax.random.normal(latent_key, (s.batch_size, s.latent))
        hard, gaps = hard_latents(self.generator, self.teacher, student, s, z)
        images = jax.lax.stop_gradient(self.generator(hard))
        answers = jax.lax.stop_gradient(self.teacher(images))
        last = jnp.mean(response_kl(student(images), answers))
        loss = Partial(_response, s.temperature)
        state, value = self.learner.learn(learn_key, state, images, answers, loss)
        first = gaps[0] if s.latent_steps else last
        metrics = {"loss": value, "gap": first, "hard_gap": last}
        return state, {**metrics, **class_metrics(answers)}


def _response(temperature: Array, student: Observed, answers: Array) -> Array:
    return response_kl(student.logits, answers, temperature)


_TINY = 1e-12

__all__ = [
    "SamplingSettings",
    "adapt_statistics",
    "gan_sampling",
    "hard_latents",
    "sampling_cost",
]
