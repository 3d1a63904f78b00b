"""DFQ: a generator bound to stored statistics looks for where student and teacher differ."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static
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
from dfke_jax.distillation.needs import check_teacher, named
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.whitebox import WhiteBox
from dfke_jax.synthesis.priors import StatisticsForm, normalisation_statistics


@dataclasses.dataclass(frozen=True)
class DFQSettings(DuelSettings):
    """How DFQ runs. Defaults: the preset of the toolbox of CMI, which distils without quantising.

    Attributes:
      student_steps: updates of the student per update of the generator. student_mode: see
        `Schedule`.
      adversarial, statistics, one_hot, balance: weights. form: of the statistics; the paper's is
        ``kl``.
    """

    latent: int = 256
    student_optimizer: str = "sgd"
    student_rate: float = 0.1
    normalised_output: bool = False
    student_steps: int = 10
    student_mode: Literal["train", "eval"] = "eval"
    adversarial: float = 1.0
    statistics: float = 1.0
    one_hot: float = 1.0
    balance: float = 20.0
    form: StatisticsForm = "kl"

    def __post_init__(self):
        super().__post_init__()
        _ = self.turns
        if not min(self.adversarial, self.statistics, self.one_hot, self.balance) >= 0:
            raise InputError(
                f"weights must not be negative, got {self.adversarial}, {self.statistics}, "
                f"{self.one_hot}, {self.balance}"
            )

    @property
    def turns(self) -> Schedule:
        """Whose turn it is."""
        return Schedule(self.student_steps, student_mode=self.student_mode)


def dfq(
    teacher: WhiteBox,
    student: Classifier,
    settings: DFQSettings,
    *,
    generator: nn.Module | None = None,
) -> Method:
    """The distillation of data-free network quantisation, for a student of full precision.

    L_G = −w_a·KL(p_T ‖ p_S) + w_s·R(x) + w_o·CE(T(x), argmax T(x)) + w_b·Σ_k p̄_k ln p̄_k over the
    batch's mean answer p̄, R the distance of normalisation statistics; L_S = KL(p_T ‖ p_S), ten
    updates on fresh latents for each of G.

    Args:
      teacher: frozen, with batch normalisation. student: gives the network.
      settings: see `DFQSettings`. ``generator_rate=0`` is the control. generator: see `duel`.

    Returns:
      A `Method` over `DuelState` with the metrics of `duel` and ``adversarial``, ``statistics``,
      ``one_hot``, ``balance``, the terms without their weights.

    Raises:
      InputError: a teacher without batch normalisation, unless ``statistics`` is 0.

    Source: Choi, Choi, El-Khamy and Lee, Data-Free Network Quantization with Adversarial Knowledge
      Distillation, CVPR Workshops 2020; weights and schedule after the released toolbox of CMI.
    Deviations: the student is not quantised; the paper's entropy of single answers is the
      cross-entropy against their arg-max; Adam's β₁ is 0.9 (0.5 in the toolbox).
    """
    check_teacher(teacher, named("dfq", settings.statistics))
    if settings.balance:
        warn_of_small_batches("DFQ", settings.batch_size, teacher)
    weights = (settings.adversarial, settings.statistics, settings.one_hot, settings.balance)
    gain = Partial(_gain, Static((settings.form, bool(settings.statistics))), weights)
    return duel(
        teacher,
        student,
        settings,
        settings.turns,
        gain,
        Partial(answers_kl),
        moments=bool(settings.statistics),
        generator=generator,
    )


def dfq_cost(settings: DFQSettings) -> Cost:
    """What one iteration costs."""
    return duel_cost(settings, settings.turns)


def _gain(static: Static, weights: tuple, seen: Seen) -> tuple[Array, Metrics]:
    form, matches = static.value
    adversarial, statistics, one_hot, balance = weights
    logits = seen.teacher.logits
    mean = jnp.mean(jax.nn.softmax(logits), 0)
    terms = {
        "adversarial": -jnp.mean(response_kl(seen.student.logits, logits, through_teacher=True)),
        "one_hot": -jnp.mean(jnp.max(jax.nn.log_softmax(logits), -1)),
        "balance": jnp.sum(
            jax.scipy.special.xlogy(mean, jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))
        ),
    }
    value = (
        adversarial * terms["adversarial"] + one_hot * terms["one_hot"] + balance * terms["balance"]
    )
    if matches:
        terms["statistics"] = normalisation_statistics(seen.teacher.moments, form)
        value += statistics * terms["statistics"]
    return value, terms


__all__ = ["DFQSettings", "dfq", "dfq_cost"]
