"""RDSKD: a generator of authentic, class-balanced and different images, whose goals may rise only at
an exponential price.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static, as_method
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Key, Metrics, PyTree
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import warn_of_small_batches
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.answers import class_metrics
from dfke_jax.nn.generators import DFMEGenerator, draw_latents
from dfke_jax.nn.players import Maker, scheduled
from dfke_jax.nn.precision import apply
from dfke_jax.nn.training import Training, descend
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class RDSKDSettings:
    """How the generator of RDSKD learns. The defaults are those of the released code for MNIST, but
    for the output.

    Attributes:
      batch_size: B, even: one half of a batch is compared with the other.
      latent, width: of the generator. generator_rate: of Adam; 0 is the control.
      period: steps after which the losses that increments are counted from are taken anew.
      damped: whether increments are penalised exponentially; without it the two losses are added.
      diversity: weight of L_ds; 1 as published, 0 for none.
      output: what of the generator the networks see, see `dfke_jax.nn.players.Maker`; the released
        generator gives BN(tanh(·)), nearest to which is ``normalised``.

    Raises:
      InputError: for values that mean nothing.
    """

    batch_size: int = 512
    latent: int = 100
    width: int = 64
    generator_rate: float = 1e-3
    period: int = 120
    damped: bool = True
    diversity: float = 1.0
    output: Literal["box", "normalised_tanh", "normalised"] = "box"

    def __post_init__(self):
        if self.batch_size < 2 or self.batch_size % 2:
            raise InputError(
                f"batch_size must be even and at least 2, its halves are compared; got "
                f"{self.batch_size}"
            )
        if min(self.latent, self.width, self.period) < 1:
            raise InputError(
                "latent, width and period must be at least 1, got "
                f"{self.latent}, {self.width} and {self.period}"
            )
        for name in ("generator_rate", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")


class RDSKDState(NamedTuple):
    """State of the generator's training.

    Attributes:
      generator: variables and optimiser's state.
      reference: (2,), L_oh and L_ie that increments are counted from; 0 at first.
      steps: () taken so far.
    """

    generator: Training
    reference: Array
    steps: Array


def rdskd(teacher: WhiteBox, settings: RDSKDSettings) -> Method:
    """Trains a generator on a teacher alone; a student is distilled on its samples afterwards.

    L_G = exp(L_oh − L'_oh) + exp(L_ie − L'_ie) + w·L_ds with L_oh = CE(T(x), argmax T(x)), L_ie = Σ_k
    p̄_k ln p̄_k of the batch's mean answer p̄, and L_ds = ‖P₂ − P₁‖ / ‖X₂ − X₁‖ over the two halves of
    a batch: X₁, X₂ (B/2, ...) what the network takes of the images, P₁, P₂ (B/2, K) the teacher's
    answers, Frobenius norms. L' are the losses at the second step of the current period (of the one
    before in its first two steps, 0 at the very beginning), constants. The first two losses often
    pull against one another; the slope exp(L − L') of one that has risen above L' outweighs the
    other's, so that neither is bought with the other. No weight is to be found.

    Args:
      teacher: frozen. settings: see `RDSKDSettings`. ``generator_rate=0`` is the control.

    Returns:
      A `Method` over `RDSKDState` with metrics ``generator_loss``, ``one_hot``, ``entropy`` (nats)
      and ``likeness`` (the three losses) and class metrics. `rdskd_generator` makes a frozen
      generator of its state, which `dfke_jax.distillation.gan_sampling` with ``latent_steps=0``
      distils a student on: fresh samples at every step, as released.

    Raises:
      InputError: from the teacher's needs.

    Source: Han, Park, Wang and Liu, Robustness and Diversity Seeking Data-Free Knowledge
      Distillation, ICASSP 2021 (arXiv 2011.03749): its abstract, and the formulas as its released
      code has them.
    Deviations: the generator's output is x̃ or pictures (see `RDSKDSettings.output`); the two middle
      normalisations have ε = 1e-5 where the released ones have 0.8; norms have a floor of 1e-6,
      where released code gives NaN once all images are the same, and 0·ln 0 = 0.
    """
    check_teacher(teacher, "rdskd")
    warn_of_small_batches("RDSKD", settings.batch_size, teacher)
    return as_method(_RDSKD(teacher=teacher, settings=settings))


def rdskd_generator(teacher: WhiteBox, settings: RDSKDSettings, state: RDSKDState) -> Partial:
    """Latents (B, Z) -> images (B, H, W, C) of a trained generator, which normalises by its running
    statistics.
    """
    still = dataclasses.replace(settings, generator_rate=0.0)  # it learns no more
    return Partial(_images, Static(_maker(teacher, still)), state.generator.variables)


def rdskd_cost(settings: RDSKDSettings) -> Cost:
    """What one step costs."""
    batch = settings.batch_size
    return Cost(samples=batch, teacher_forward=batch, teacher_backward=batch, generator_updates=1)


def _maker(teacher: WhiteBox, s: RDSKDSettings) -> Maker:
    generator = DFMEGenerator(teacher.input_shape, s.width, s.latent)
    rule = scheduled("adam", s.generator_rate, 0, "constant")
    return Maker(generator, teacher.preprocessing, rule, s.output)


def _images(maker: Static, variables: PyTree, z: Array) -> Array:
    of: Maker = maker.value
    return of.shown(apply(of.generator, variables, z, train=False, method="pre_activation"))


@record
class _RDSKD:
    teacher: WhiteBox
    settings: RDSKDSettings = static_field()

    def init(self, key: Key) -> RDSKDState:
        made = _maker(self.teacher, self.settings).new(key)
        return RDSKDState(made, jnp.zeros(2, jnp.float32), jnp.zeros((), jnp.int32))

    def step(self, key: Key, state: RDSKDState) -> tuple[RDSKDState, Metrics]:
        s, maker = self.settings, _maker(self.teacher, self.settings)
        z = draw_latents(key, (s.batch_size,), maker.generator)

        def objective(params: PyTree) -> tuple[Array, tuple[tuple[Array, Metrics], PyTree]]:
            variables = {**state.generator.variables, "params": params}
            images, statistics = maker.images(variables, z)
            logits = self.teacher(images)
            log_p = jax.nn.log_softmax(logits)
            p = jnp.exp(log_p)
            mean = p.mean(0)
            sure = -jnp.mean(jnp.max(log_p, -1))  # cross-entropy against one's own arg-max
            balance = jnp.sum(jax.scipy.special.xlogy(mean, jnp.maximum(mean, _TINY)))
            likeness = _apart(p) / _apart(self.teacher.preprocessing(images))
            rises = jnp.stack([sure, balance]) - state.reference
            value = jnp.sum(jnp.exp(rises) if s.damped else rises) + s.diversity * likeness
            terms = {"one_hot": sure, "entropy": balance, "likeness": likeness}
            return value, ((logits, terms), statistics)

        generator, value, (logits, terms) = descend(maker.optimizer, state.generator, objective)
        # the released code takes the reference at the second step of each of its epochs
        now = state.steps % s.period == min(1, s.period - 1)
        found = jnp.stack([terms["one_hot"], terms["entropy"]])
        after = RDSKDState(generator, jnp.where(now, found, state.reference), state.steps + 1)
        return after, {"generator_loss": value, **terms, **class_metrics(logits)}


def _apart(values: Array) -> Array:
    """Frobenius norm of the difference of a batch's halves; at least `_FLOOR`."""
    first, second = jnp.split(values, 2)
    return jnp.sqrt(jnp.sum(jnp.square(second - first)) + _FLOOR**2)


_FLOOR = 1e-6
_TINY = float(jnp.finfo(jnp.float32).tiny)

__all__ = ["RDSKDSettings", "RDSKDState", "rdskd", "rdskd_cost", "rdskd_generator"]
