"""DeGAN: a GAN of proxy images whose samples also cover the teacher's classes."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import warn_of_small_batches
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.answers import class_metrics
from dfke_jax.nn.classifier import as_float
from dfke_jax.nn.discriminators import DCGANDiscriminator
from dfke_jax.nn.generators import DCGANGenerator, draw_latents
from dfke_jax.nn.precision import apply
from dfke_jax.nn.training import Training, descend
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class DeGANSettings:
    """How DeGAN runs; the defaults are those of the released code.

    Attributes:
      batch_size: B. latent, width: of generator and discriminator.
      generator_rate, discriminator_rate: of Adam, with β₁ `adam_decay`; a generator's rate of 0 is
        the control.
      entropy: λ_e, of the teacher's uncertainty of single images.
      diversity: λ_d, of the balance of its mean answer; with both 0 this is a plain GAN.

    Raises:
      InputError: for values that mean nothing.
    """

    batch_size: int = 2048
    latent: int = 100
    width: int = 64
    generator_rate: float = 2e-4
    discriminator_rate: float = 2e-4
    adam_decay: float = 0.5
    entropy: float = 0.0
    diversity: float = 5.0

    def __post_init__(self):
        for name in ("batch_size", "latent", "width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("generator_rate", "discriminator_rate", "entropy", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.adam_decay < 1:
            raise InputError(f"adam_decay must lie in [0, 1), got {self.adam_decay}")


class DeGANState(NamedTuple):
    """Generator and discriminator, with their optimisers' states."""

    generator: Training
    discriminator: Training


def degan(teacher: WhiteBox, proxy: Array, settings: DeGANSettings) -> Method:
    """Trains a generator to make images like the proxy's that a teacher spreads over its classes.

    L_D = −E log D(x) − E log(1 − D(G(z))) over proxy images x; L_G = −E log D(G(z)) +
    λ_e·E[H(p)] + λ_d·Σ_k p̄_k ln p̄_k with p the teacher's answers to G(z), p̄ their mean over the
    batch. The student is distilled on `degan_images` afterwards.

    Args:
      teacher: frozen. proxy: (N, H, W, C) on the device, uint8 or float in [0, 1]: images of other
        classes than the teacher's.
      settings: see `DeGANSettings`.

    Returns:
      A `Method` over `DeGANState` with metrics ``generator_loss``, ``discriminator_loss``,
      ``adversarial``, ``entropy``, ``diversity`` (terms without weights) and class metrics.

    Raises:
      InputError: proxy images of another shape, or a teacher of another box than [0, 1].

    Source: Addepalli, Nayak, Chakraborty and Babu, DeGAN: Data-Enriching GAN for Retrieving
      Representative Samples from a Trained Classifier, AAAI 2020, and its released code.
    Deviations: generator and discriminator are `DCGANGenerator` and `DCGANDiscriminator`; batches
      are drawn with replacement.
    """
    check_teacher(teacher, "degan")
    if jnp.shape(proxy)[1:] != tuple(teacher.input_shape) or not len(proxy):
        raise InputError(
            f"proxy images must be (N, {', '.join(map(str, teacher.input_shape))}) with N >= 1, got "
            f"{jnp.shape(proxy)}; dfke_jax.distillation.fitted brings images to a shape"
        )
    if tuple(teacher.preprocessing.box) != (0.0, 1.0):
        raise InputError(f"a GAN of images in [0, 1] for a box of {teacher.preprocessing.box}")
    if settings.diversity:
        warn_of_small_batches("DeGAN", settings.batch_size, teacher)
    generator = DCGANGenerator(teacher.input_shape, settings.width, settings.latent)
    return as_method(
        _DeGAN(teacher=teacher, proxy=jnp.asarray(proxy), settings=settings, generator=generator)
    )


def degan_images(
    state: DeGANState,
    settings: DeGANSettings,
    shape: tuple[int, int, int],
    key: Key,
    count: int,
    batch_size: int = 500,
) -> Array:
    """Samples (count, H, W, C) of a trained generator, normalised by its running statistics."""
    return _sampled(state.generator.variables, settings, shape, key, count, min(batch_size, count))


def degan_cost(settings: DeGANSettings) -> Cost:
    """What one iteration costs; without a term of the teacher it is asked for metrics alone."""
    batch = settings.batch_size
    back = batch if settings.entropy or settings.diversity else 0
    return Cost(samples=batch, teacher_forward=batch, teacher_backward=back, generator_updates=1)


def _sampled(
    variables: PyTree, settings: DeGANSettings, shape: tuple, key: Key, count: int, size: int
) -> Array:
    generator = DCGANGenerator(shape, settings.width, settings.latent)
    batches = -(-count // size)
    z = draw_latents(key, (batches, size), generator)
    made = jax.lax.map(lambda z: apply(generator, variables, z, train=False), z)
    return made.reshape(-1, *shape)[:count]


_sampled = jax.jit(_sampled, static_argnums=(1, 2, 4, 5))


@record
class _DeGAN:
    teacher: WhiteBox
    proxy: Array
    settings: DeGANSettings = static_field()
    generator: DCGANGenerator = static_field()

    @property
    def judge(self) -> DCGANDiscriminator:
        return DCGANDiscriminator(self.settings.width)

    def rule(self, rate: float) -> optax.GradientTransformation:
        return optax.adam(rate, b1=self.settings.adam_decay)

    def init(self, key: Key) -> DeGANState:
        generator_key, judge_key = jax.random.split(key)
        made = self.generator.init(generator_key, jnp.zeros((2, self.generator.latent)))
        judge = self.judge.init(judge_key, jnp.zeros((2, *self.generator.shape)))
        s = self.settings
        return DeGANState(
            Training(made, self.rule(s.generator_rate).init(made["params"])),
            Training(judge, self.rule(s.discriminator_rate).init(judge["params"])),
        )

    def step(self, key: Key, state: DeGANState) -> tuple[DeGANState, Metrics]:
        s = self.settings
        latent_key, row_key = jax.random.split(key)
        z = draw_latents(latent_key, (s.batch_size,), self.generator)
        rows = jax.random.randint(row_key, (s.batch_size,), 0, self.proxy.shape[0])
        generator, fake, metrics = self.deceive(state, z)
        judge, judged = self.tell_apart(state.discriminator, as_float(self.proxy[rows]), fake)
        return DeGANState(generator, judge), {"discriminator_loss": judged, **metrics}

    def deceive(self, state: DeGANState, z: Array) -> tuple[Training, Array, Metrics]:
        """The generator after its step, its images before it, and metrics."""
        s, before = self.settings, state.generator

        def objective(params: PyTree) -> tuple[Array, tuple[Any, PyTree]]:
            variables = {**before.variables, "params": params}
            images, updated = apply(
                self.generator, variables, z, train=True, mutable=["batch_stats"]
            )
            judged, _ = apply(
                self.judge, state.discriminator.variables, images, train=True,
                mutable=["batch_stats"],
            )  # fmt: skip
            logits = self.teacher(images)
            log_p = jax.nn.log_softmax(logits)
            mean = jnp.mean(jnp.exp(log_p), 0)
            terms = {
                "adversarial": jnp.mean(jax.nn.softplus(-judged)),
                "entropy": -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1)),
                "diversity": jnp.sum(jax.scipy.special.xlogy(mean, jnp.maximum(mean, _TINY))),
            }
            value = terms["adversarial"]
            value += s.entropy * terms["entropy"] + s.diversity * terms["diversity"]
            return value, ((images, {**terms, **class_metrics(logits)}), updated)

        after, value, (images, metrics) = descend(self.rule(s.generator_rate), before, objective)
        return after, jax.lax.stop_gradient(images), {"generator_loss": value, **metrics}

    def tell_apart(self, before: Training, real: Array, fake: Array) -> tuple[Training, Array]:
        """The discriminator after its step; given and made images are normalised apart."""

        def objective(params: PyTree) -> tuple[Array, tuple[None, PyTree]]:
            variables = {**before.variables, "params": params}
            on_real, updated = apply(
                self.judge, variables, real, train=True, mutable=["batch_stats"]
            )
            on_fake, updated = apply(
                self.judge, {**variables, **updated}, fake, train=True, mutable=["batch_stats"]
            )
            loss = jnp.mean(jax.nn.softplus(-on_real)) + jnp.mean(jax.nn.softplus(on_fake))
            return loss, (None, updated)

        after, value, _ = descend(self.rule(self.settings.discriminator_rate), before, objective)
        return after, value


_TINY = float(jnp.finfo(jnp.float32).tiny)

__all__ = ["DeGANSettings", "DeGANState", "degan", "degan_cost", "degan_images"]
