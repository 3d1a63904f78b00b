"""Relational distillation: the student keeps distances and angles between the teacher's features."""

import dataclasses

from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method
from dfke_jax.core.types import Array, Augmentation
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.distillation.observed import observed_distillation
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import relational_angle, relational_distance, response_kl
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class RelationSettings:
    """What the student keeps. The weights are the published ones.

    Attributes:
      distance: weight of the distances between pairs. angle: of the angles of triplets.
      response: weight of τ²·KL(p_T^τ ‖ p_S^τ); without it the last layer learns nothing.
      temperature: τ.
    """

    distance: float = 25.0
    angle: float = 50.0
    response: float = 1.0
    temperature: float = 20.0

    def __post_init__(self):
        if not min(self.distance, self.angle, self.response) >= 0 or not self.temperature > 0:
            raise InputError(
                "weights must not be negative and the temperature positive, got distance "
                f"{self.distance}, angle {self.angle}, response {self.response} and temperature "
                f"{self.temperature}"
            )
        if not self.distance + self.angle + self.response > 0:
            raise InputError("one of distance, angle and response must be positive")


def relation_distillation(
    student: Classifier,
    teacher: WhiteBox,
    images: Array,
    settings: RelationSettings,
    *,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
    augment: Augmentation | None = None,
) -> Method:
    """Trains a student on relations between the teacher's features, and on its answers.

    L = λ_D·L_D + λ_A·L_A + λ·τ²·KL(p_T^τ ‖ p_S^τ) with L_D = `nn.relational_distance` and L_A =
    `nn.relational_angle` over the input of the last layer; its width may differ.

    Args:
      student, teacher, images, steps, batch_size, learning_rate, optimizer, augment: as of
        `observed_distillation`.
      settings: see `RelationSettings`. ``distance=angle=0`` is the control, `knowledge_distillation`.

    Raises:
      InputError: fewer than three images in a batch, or a network that does not show the input of
        its last layer.

    Source: Park, Kim, Lu, Cho, Relational Knowledge Distillation, CVPR 2019, section 3.2.
    Deviations: means over pairs and triplets for sums; no labels.
    """
    check_teacher(teacher, "relation_distillation")
    if why := student.lacks("features"):
        raise InputError(f"relations are of the input of the last layer; of the student {why}")
    if batch_size < 3:
        raise InputError(f"angles need batches of at least 3, got batch_size {batch_size}")
    s = settings
    loss = Partial(
        _loss, float(s.distance), float(s.angle), float(s.response), float(s.temperature)
    )
    return observed_distillation(
        student,
        teacher,
        images,
        loss,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
        augment=augment,
    )


def _loss(
    distance: Array,
    angle: Array,
    response: Array,
    temperature: Array,
    student: Observed,
    teacher: Observed,
) -> Array:
    ours, theirs = student.activations["features"], teacher.activations["features"]
    relations = distance * relational_distance(ours, theirs) + angle * relational_angle(
        ours, theirs
    )
    return relations + response * response_kl(student.logits, teacher.logits, temperature)


__all__ = ["RelationSettings", "relation_distillation"]
