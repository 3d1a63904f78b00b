"""DFAD: a generator that looks for images on which student and teacher differ."""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Metrics
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import DuelSettings, Schedule, Seen, duel, duel_cost
from dfke_jax.nn.answers import each_head
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import logit_l1
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.whitebox import WhiteBox

FORMS = ("l1", "log_l1")


@dataclasses.dataclass(frozen=True)
class DFADSettings(DuelSettings):
    """How DFAD runs. The defaults are the published ones for MNIST, but for the output (pictures).

    Attributes:
      student_steps: updates of the student per update of the generator.
      student_mode: of the student while the generator moves, see `Schedule`; released code:
        ``train``.
      form: of what the generator climbs: ``l1``, or ``log_l1`` for log(1 + L), as published for
        segmentation.
    """

    batch_size: int = 512
    student_optimizer: str = "sgd"
    student_rate: float = 0.01
    weight_decay: float = 1e-4
    schedule: str = "constant"
    student_steps: int = 5
    student_mode: Literal["train", "eval"] = "train"
    form: Literal["l1", "log_l1"] = "l1"

    def __post_init__(self):
        super().__post_init__()
        _ = self.turns
        if self.form not in FORMS:
            raise UnknownNameError("form of the disagreement", self.form, FORMS)

    @property
    def turns(self) -> Schedule:
        """Whose turn it is."""
        return Schedule(self.student_steps, student_mode=self.student_mode)


def dfad(
    teacher: WhiteBox,
    student: Classifier,
    settings: DFADSettings,
    *,
    generator: nn.Module | None = None,
) -> Method:
    """Data-free adversarial distillation.

    min_S max_G L with L = (1/BK) Σ |T(x) − S(x)| on logits, x = G(z); five updates of S on fresh
    latents, then one of G.

    Args:
      teacher: frozen. student: gives the network.
      settings: see `DFADSettings`. ``generator_rate=0`` is the control. generator: see `duel`.

    Returns:
      A `Method` over `DuelState` with the metrics of `duel`; ``generator_loss`` is −L, or −log(1 +
      L).

    Source: Fang, Song, Shen, Wang, Chen and Song, Data-Free Adversarial Distillation, 2019, section
      3, and its released code (schedule, modes).
    Deviation: images are pictures in the box unless ``output`` says otherwise.
    """
    gain = Partial(_log_gain if settings.form == "log_l1" else _gain)
    return duel(
        teacher, student, settings, settings.turns, gain, Partial(_distance), generator=generator
    )


def dfad_cost(settings: DFADSettings) -> Cost:
    """What one iteration costs."""
    return duel_cost(settings, settings.turns)


def _between(seen: Seen) -> Array:
    return jnp.mean(each_head(Partial(_through))(seen.student.logits, seen.teacher.logits))


def _through(student: Array, teacher: Array) -> Array:
    return logit_l1(student, teacher, through_teacher=True)


def _gain(seen: Seen) -> tuple[Array, Metrics]:
    return -_between(seen), {}


def _log_gain(seen: Seen) -> tuple[Array, Metrics]:
    return -jnp.log1p(_between(seen)), {}


def _distance(student: Observed, teacher: Observed) -> Array:
    return each_head(Partial(logit_l1))(student.logits, teacher.logits)


__all__ = ["DFADSettings", "dfad", "dfad_cost"]
