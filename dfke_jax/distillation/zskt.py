"""ZSKT: a generator that looks for images on which the student does not match the teacher's
beliefs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.types import Array, Metrics
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.duel import DuelSettings, Schedule, Seen, duel, duel_cost
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.answers import each_head
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import attention_transfer, response_kl
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class ZSKTSettings(DuelSettings):
    """How ZSKT runs. The defaults are the published ones, but for the output (pictures).

    Attributes:
      student_steps: updates of the student per update of the generator, all on its images of the
        same latents.
      student_mode: of the student while the generator moves, see `Schedule`; released code:
        ``train``.
      attention: β of the attention term, in the released units: the mean over pixels of the squared
        difference of two normalised attention maps. 0 leaves it out.
      layers: whose maps are matched; every layer with equal height and width in both networks by
        default.
    """

    batch_size: int = 128
    clip: float = 5.0
    student_steps: int = 10
    student_mode: Literal["train", "eval"] = "train"
    attention: float = 250.0
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        _ = self.turns
        if self.attention < 0:
            raise InputError(f"attention must not be negative, got {self.attention}")

    @property
    def turns(self) -> Schedule:
        """Whose turn it is."""
        return Schedule(self.student_steps, same_latents=True, student_mode=self.student_mode)


def zskt(
    teacher: WhiteBox,
    student: Classifier,
    settings: ZSKTSettings,
    *,
    generator: nn.Module | None = None,
) -> Method:
    """Zero-shot knowledge transfer by adversarial belief matching.

    L_G = −(1/K)·KL(p_T ‖ p_S), L_S = KL(p_T ‖ p_S)/K + β·Σ_l (1/H_l W_l)·‖Q_S^l − Q_T^l‖² with Q =
    F/‖F‖₂, F = vec(mean_c A_c²). One update of G, then ten of S on what G then makes of the same
    latents. Both KL are the mean over batch *and* classes, as released.

    Args:
      teacher: frozen. student: gives the network.
      settings: see `ZSKTSettings`. ``generator_rate=0`` is the control. generator: see `duel`.

    Returns:
      A `Method` over `DuelState` with the metrics of `duel`.

    Raises:
      InputError: an attention term between networks that share no layer with maps of one size
        (``attention=0`` leaves it out), or over a layer that one of them lacks.

    Source: Micaelli and Storkey, Zero-Shot Knowledge Transfer via Adversarial Belief Matching,
      NeurIPS 2019, section 3, and its released code (schedule, clipping, units of the losses).
    Deviations: images are pictures in the box unless ``output`` says otherwise; images are made
      once for the ten updates of the student, and no gradient of them is formed (released code
      makes both ten times and throws them away); running statistics of the student are those of its
      own updates.
    """
    check_teacher(teacher, "zskt" if settings.attention else "zskt(attention=0)")
    names = shared_maps(teacher, student, settings.layers) if settings.attention else ()
    loss = Partial(_student_loss, Static(names), settings.attention)
    return duel(
        teacher,
        student,
        settings,
        settings.turns,
        Partial(_gain),
        loss,
        activations=bool(names),
        generator=generator,
    )


def zskt_cost(settings: ZSKTSettings) -> Cost:
    """What one iteration costs."""
    return duel_cost(settings, settings.turns)


def shared_maps(
    teacher: WhiteBox, student: Classifier, wanted: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Recorded layers whose maps have equal height and width in both networks; `wanted` alone, if
    given.

    Raises:
      InputError: when there is none, or one of `wanted` is not among them.
    """
    images = jax.ShapeDtypeStruct((2, *teacher.input_shape), jnp.float32)
    of_teacher, of_student = (
        jax.eval_shape(network.activations, images) for network in (teacher, student)
    )
    known = tuple(
        name
        for name, maps in of_teacher.items()
        if len(maps.shape) == 4
        and name in of_student
        and of_student[name].shape[:3] == maps.shape[:3]
    )
    missing = [name for name in wanted if name not in known]
    if missing or not known:
        raise InputError(
            "attention needs layers with maps of one size in both networks; they share "
            f"{', '.join(known) or 'none'}"
            + (f", and {', '.join(missing)} was asked for" if missing else "")
            + "; attention=0 leaves the term out"
        )
    return wanted or known


def _gain(seen: Seen) -> tuple[Array, Metrics]:
    return -jnp.mean(each_head(Partial(_through))(seen.student.logits, seen.teacher.logits)), {}


def _through(student: Array, teacher: Array) -> Array:
    return response_kl(student, teacher, through_teacher=True) / teacher.shape[-1]


def _belief(student: Array, teacher: Array) -> Array:
    return response_kl(student, teacher) / teacher.shape[-1]


def _student_loss(names: Static, attention: Array, student: Observed, teacher: Observed) -> Array:
    loss = each_head(Partial(_belief))(student.logits, teacher.logits)
    return loss + attention_term(names.value, attention, student, teacher)


def attention_term(
    names: Sequence[str], attention: float | Array, student: Observed, teacher: Observed
) -> Array:
    """β·Σ_l (1/H_l W_l)·‖Q_S^l − Q_T^l‖² (B,) over layers by name, see `zskt`."""
    term = jnp.zeros(())
    for name in names:
        ours, theirs = student.activations[name], teacher.activations[name]
        # β/2·Σ over pixels in `attention_transfer`, β·mean over pixels as released
        pixels = ours.shape[1] * ours.shape[2]
        term = term + attention_transfer([ours], [theirs], 2 * attention / pixels)
    return term


__all__ = ["ZSKTSettings", "attention_term", "shared_maps", "zskt", "zskt_cost"]
