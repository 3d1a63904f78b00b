"""Training of a student on what it and its teacher show of the same images, hidden layers included.

What feature and relation distillation have in common; a method adds its loss.
"""

from collections.abc import Callable

import jax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.method import Method, as_method, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.players import Learner
from dfke_jax.nn.training import Training, optimiser
from dfke_jax.nn.whitebox import WhiteBox

ObservedLoss = Callable[[Observed, Observed], Array]
"""(student, teacher) -> (B,), or () for a loss over relations; a `jax.tree_util.Partial`."""


def observed_distillation(
    student: Classifier,
    teacher: WhiteBox,
    images: Array,
    loss: ObservedLoss,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
    augment: Augmentation | None = None,
) -> Method:
    """A method whose every step draws a batch, shows it to both networks and descends the mean of
    `loss`.

    Args:
      student: gives the network; fresh parameters are drawn. teacher: frozen.
      images: (N, H, W, C) on the device, uint8 or float in the box.
      loss: see `ObservedLoss`.
      steps: length of the cosine schedule; run the method for that many.
      batch_size, learning_rate, optimizer: of the training.
      augment: applied before both networks see the batch.

    Returns:
      A `Method` over `dfke_jax.nn.Training` with metric ``loss``. It draws what
      `knowledge_distillation` draws, so that the same key trains on the same batches.

    Raises:
      InputError: a batch size below 1, or networks of other images or classes.
    """
    check_pair(teacher, student)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    check_arguments(augment, "augment")
    rule = optimiser(optimizer, learning_rate, steps)
    return as_method(
        _Observed(
            teacher=teacher,
            images=images,
            loss=loss,  # type: ignore[arg-type]
            augment=augment,
            learner=Learner.of(student, rule),
            batch_size=batch_size,
        )
    )


def check_pair(teacher: WhiteBox, student: Classifier) -> None:
    """Raises `InputError` unless both networks take the same images and tell as many classes."""
    if (teacher.num_classes, teacher.input_shape) != (student.num_classes, student.input_shape):
        raise InputError(
            "teacher and student must agree on classes and images; the teacher has "
            f"{teacher.num_classes} classes of {teacher.input_shape}, the student "
            f"{student.num_classes} of {student.input_shape}"
        )


def draw_batch(
    key: Key, images: Array, batch_size: int, augment: Augmentation | None
) -> tuple[Array, Array, Key]:
    """Rows drawn with replacement and augmented (B, H, W, C), their numbers (B,), and a key for the
    network; the draws are those of `dfke_jax.nn.training`.
    """
    row_key, augment_key, network_key = jax.random.split(key, 3)
    chosen = jax.random.randint(row_key, (batch_size,), 0, images.shape[0])
    batch = constrain_samples(as_float(images[chosen]))
    return (batch if augment is None else augment(augment_key, batch)), chosen, network_key


@record
class _Observed:
    teacher: WhiteBox
    images: Array
    loss: Partial
    augment: Augmentation | None
    learner: Learner = static_field()
    batch_size: int = static_field()

    def init(self, key: Key) -> Training:
        return self.learner.new(key)

    def step(self, key: Key, state: Training) -> tuple[Training, Metrics]:
        batch, _, key = draw_batch(key, self.images, self.batch_size, self.augment)
        shown = jax.lax.stop_gradient(self.teacher.observe(batch, activations=True))
        state, loss = self.learner.learn(key, state, batch, shown, self.loss, activations=True)
        return state, {"loss": loss}


__all__ = ["ObservedLoss", "check_pair", "draw_batch", "observed_distillation"]
