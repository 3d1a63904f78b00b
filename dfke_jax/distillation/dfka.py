"""Data-free amalgamation: one generator against several teachers, one student with a head for each."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Metrics
from dfke_jax.distillation.cost import Cost
from dfke_jax.distillation.dafl import JOINT, DAFLSettings, _gain
from dfke_jax.distillation.duel import Seen, answers_kl, duel, duel_cost, warn_of_small_batches
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.nn.classifier import Classifier, Preprocessing
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class DFKASettings(DAFLSettings):
    """How amalgamation runs; weights are of each teacher's own terms, see `DAFLSettings`.

    Attributes:
      generator_rate: 1e-3 for Adam; the weights are DAFL's.
    """

    generator_rate: float = 1e-3


@record
class Teachers:
    """Several teachers of the same images as one: answers are ``task0``, ``task1``, ..., features
    ``features/0``, ``features/1``, ...

    Attributes:
      members: frozen networks, which take the same images.
    """

    members: tuple[WhiteBox, ...]

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the first."""
        return self.members[0].preprocessing

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.members[0].input_shape

    def __call__(self, images: Array) -> dict[str, Array]:
        return self.observe(images).logits  # type: ignore[return-value]

    def observe(
        self, images: Array, *, activations: bool = False, moments: bool = False
    ) -> Observed:
        """What all of them show."""
        seen = [
            one.observe(images, activations=activations, moments=moments) for one in self.members
        ]
        return Observed(
            {f"task{i}": one.logits for i, one in enumerate(seen)},  # type: ignore[arg-type]
            {
                f"features/{i}": one.activations["features"]
                for i, one in enumerate(seen)
                if activations
            },
            tuple(moment for one in seen for moment in one.moments),
            {},
        )


def dfka(teachers: Sequence[WhiteBox], student: Classifier, settings: DFKASettings) -> Method:
    """One student of several teachers, none of whose data is at hand.

    L_G = Σ_t (w·L_oh + α·L_a + β·L_ie) of teacher t's own answers and features (see `dafl`);
    L_S = Σ_t KL(p_t ‖ s_t) over the student's heads s_t. Both players are updated from one batch.

    Args:
      teachers: frozen; each shows the input of its last layer.
      student: gives a network with a head for each teacher in their order, `dfke_jax.nn.Heads`.
      settings: see `DFKASettings`. ``generator_rate=0`` is the control.

    Returns:
      A `Method` over `DuelState` with the metrics of `duel` (class metrics by task) and
      ``generator_loss/taskT``.

    Raises:
      InputError: no teacher, teachers of different images, a teacher without features, a student
        with other heads.

    Source: Ye, Ji, Wang, Gao and Song, Data-Free Knowledge Amalgamation via Group-Stack Dual-GAN,
      CVPR 2020.
    Deviations: one generator trained as a whole, not group by group; the student is trained beside
      it on the teachers' answers, not grown out of a second generator by matching their features
      block by block; answers are one class a task, not several attributes.
    """
    if not teachers:
        raise InputError("amalgamation needs at least one teacher")
    first = teachers[0]
    for teacher in teachers:
        check_teacher(teacher, "dfka")
        if settings.entropy:
            warn_of_small_batches("DFKA", settings.batch_size, teacher)
        ours, theirs = ((one.input_shape, one.preprocessing.box) for one in (first, teacher))
        if ours != theirs:
            raise InputError(
                f"teachers must take the same images, got {ours[0]} in {ours[1]} and {theirs[0]} "
                f"in {theirs[1]}"
            )
    together = Teachers(members=tuple(teachers))
    gain = Partial(_summed, settings.one_hot, settings.activation, settings.entropy)
    loss = Partial(answers_kl)
    return duel(together, student, settings, JOINT, gain, loss, activations=True)  # type: ignore[arg-type]


def dfka_cost(settings: DFKASettings, teachers: int) -> Cost:
    """What one iteration costs; a teacher's rows count for each."""
    cost = duel_cost(settings, JOINT)
    return cost._replace(
        teacher_forward=teachers * cost.teacher_forward,
        teacher_backward=teachers * cost.teacher_backward,
    )


def task_accuracies(
    answers: Sequence[np.ndarray], labels: np.ndarray, sizes: Sequence[int]
) -> list[float]:
    """Share of right answers of each head to the images of its own classes, in [0, 1].

    Args:
      answers: (N, K_t) of each head. labels: (N,), classes of all heads one after another.
      sizes: K_t of each head.
    """
    found, start = [], 0
    for logits, size in zip(answers, sizes, strict=True):
        own = (labels >= start) & (labels < start + size)
        found.append(float(np.mean(np.argmax(logits[own], -1) == labels[own] - start)))
        start += size
    return found


def _summed(one_hot: Array, activation: Array, entropy: Array, seen: Seen) -> tuple[Array, Metrics]:
    total, metrics = jnp.zeros(()), {}
    logits: dict[str, Array] = seen.teacher.logits  # type: ignore[assignment]
    for i in range(len(logits)):
        features = {"features": seen.teacher.activations[f"features/{i}"]}
        own = seen.teacher._replace(logits=logits[f"task{i}"], activations=features)
        value, _ = _gain(one_hot, activation, entropy, seen._replace(teacher=own))
        total, metrics[f"generator_loss/task{i}"] = total + value, value
    return total, metrics


__all__ = ["DFKASettings", "Teachers", "dfka", "dfka_cost", "task_accuracies"]
