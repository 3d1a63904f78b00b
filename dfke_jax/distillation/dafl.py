"""DAFL: a generator of images that the teacher is sure of, that excite it, and that cover all of
its classes.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Metrics
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import (
    DuelSettings,
    Schedule,
    Seen,
    answers_kl,
    duel,
    duel_cost,
    warn_of_small_batches,
)
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.answers import heads
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.whitebox import WhiteBox

JOINT = Schedule(student=1, joint=True)


@dataclasses.dataclass(frozen=True)
class DAFLSettings(DuelSettings):
    """How DAFL runs. The defaults are the published ones for MNIST, but for the output.

    Attributes:
      one_hot: weight of L_oh. activation: α, of L_a. entropy: β, of L_ie, as published: for
        logarithms of base 10.
      output: the published generator gives BN(tanh(·)), normalised over the batch; ``normalised``
        (BN alone) is nearest to it, ``box`` keeps to pictures.

    In the released code the two middle normalisations of the generator have ε = 0.8 (a momentum in
    the place of an epsilon); here it is 1e-5.
    """

    batch_size: int = 512
    generator_rate: float = 0.2
    schedule: str = "constant"
    one_hot: float = 1.0
    activation: float = 0.1
    entropy: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        if min(self.one_hot, self.activation, self.entropy) < 0:
            raise InputError(
                f"weights must not be negative, got {self.one_hot}, {self.activation} and "
                f"{self.entropy}"
            )


def dafl(
    teacher: WhiteBox,
    student: Classifier,
    settings: DAFLSettings,
    *,
    generator: nn.Module | None = None,
) -> Method:
    """Data-free learning of student networks.

    L_G = w·L_oh + α·L_a + β·L_ie with L_oh = CE(T(x), argmax T(x)), L_a = −mean |f_T(x)| over the
    penultimate features, L_ie = Σ_k p̄_k log₁₀ p̄_k of the batch's mean answer p̄; L_S = KL(p_T ‖
    p_S). Both players are updated from one batch.

    p̄ is the batch's: with few images a class it is noise, and every weight must be found again;
    below ten a class a warning says so. Of answers with several heads every head has its L_oh and
    L_ie.

    Args:
      teacher: frozen; its input of the last layer are the features. student: gives the network.
      settings: see `DAFLSettings`. ``generator_rate=0`` is the control. generator: see `duel`.

    Returns:
      A `Method` over `DuelState` with the metrics of `duel` and ``one_hot``, ``activation``,
      ``entropy`` (the three losses without their weights; entropy in base 10).

    Source: Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu and Tian, Data-Free Learning of Student Networks,
      ICCV 2019, section 3, and its released code (the joint step, base 10).
    Deviations: the generator's output is x̃ or pictures (see `DAFLSettings.output`); 0·log 0 = 0,
      where released code gives NaN as soon as a class is never answered.
    """
    check_teacher(teacher, "dafl")
    if settings.entropy:
        warn_of_small_batches("DAFL", settings.batch_size, teacher)
    gain = Partial(_gain, settings.one_hot, settings.activation, settings.entropy)
    return duel(
        teacher,
        student,
        settings,
        JOINT,
        gain,
        Partial(answers_kl),
        activations=True,
        generator=generator,
    )


def dafl_cost(settings: DAFLSettings) -> Cost:
    """What one iteration costs."""
    return duel_cost(settings, JOINT)


def _gain(one_hot: Array, activation: Array, entropy: Array, seen: Seen) -> tuple[Array, Metrics]:
    sure, balance = jnp.zeros(()), jnp.zeros(())
    for logits in heads(seen.teacher.logits).values():
        sure -= jnp.mean(jnp.max(jax.nn.log_softmax(logits), -1))  # CE against one's own arg-max
        mean = jnp.mean(jax.nn.softmax(logits), tuple(range(logits.ndim - 1)))
        balance += jnp.sum(jax.scipy.special.xlogy(mean, jnp.maximum(mean, _TINY))) / math.log(10)
    excited = -jnp.mean(jnp.abs(seen.teacher.activations["features"]))
    value = one_hot * sure + activation * excited + entropy * balance
    return value, {"one_hot": sure, "activation": excited, "entropy": balance}


_TINY = float(jnp.finfo(jnp.float32).tiny)

__all__ = ["DAFLSettings", "dafl", "dafl_cost"]
