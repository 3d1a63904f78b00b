"""DFND: unlabelled images in the wild, chosen by the teacher, and a student that expects the
teacher's answers to them to be wrong now and then.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, as_method, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.distillation.observed import check_pair, draw_batch
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import response_kl
from dfke_jax.nn.players import Learner, scheduled
from dfke_jax.nn.training import Training, updated_by
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class DFNDSettings:
    """How DFND trains. The defaults are those of the released code.

    Attributes:
      teacher_accuracy: ρ in (0, 1), the diagonal of the adaptation matrix: the share of answers
        that are right, stated by whoever gives the teacher (released: 0.9523 for CIFAR-10).
      adaptation: weight of the noisy term; 0 leaves it out.
      class_weights: weigh samples by the inverse frequency of the teacher's answers.
      temperature: τ.
      steps: that the schedule spans. batch_size: B.
      optimizer, learning_rate, schedule, drops, momentum, weight_decay: of the student, see
        `dfke_jax.nn.players.scheduled`.
      adaptation_rate: of Adam on the adaptation matrix.
    """

    teacher_accuracy: float = 0.9523
    adaptation: float = 1.0
    class_weights: bool = True
    temperature: float = 2.0
    steps: int = 2000
    batch_size: int = 256
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    schedule: str = "multistep"
    drops: tuple[float, ...] = (0.4, 0.8)
    momentum: float = 0.9
    weight_decay: float = 5e-4
    adaptation_rate: float = 1e-3

    def __post_init__(self):
        if not 0 < self.teacher_accuracy < 1:
            raise InputError(f"teacher_accuracy must lie in (0, 1), got {self.teacher_accuracy}")
        if not self.adaptation >= 0 or not self.adaptation_rate >= 0:
            raise InputError(
                "adaptation and adaptation_rate must not be negative, got "
                f"{self.adaptation} and {self.adaptation_rate}"
            )
        if not min(self.temperature, self.learning_rate) > 0:
            raise InputError(
                "temperature and learning_rate must be positive, got "
                f"{self.temperature} and {self.learning_rate}"
            )
        if self.steps < 1 or self.batch_size < 1:
            raise InputError(
                f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}"
            )
        _ = self.rule

    @property
    def rule(self):
        """The student's optimiser."""
        return scheduled(
            self.optimizer,
            self.learning_rate,
            self.steps,
            self.schedule,
            self.drops,
            0.1,
            self.momentum,
            self.weight_decay,
        )


class DFNDState(NamedTuple):
    """Student and adaptation matrix, each with its optimiser's state."""

    student: Training
    adaptation: Training


def most_certain(images: np.ndarray, teacher: WhiteBox, count: int) -> np.ndarray:
    """Rows of the images that the teacher is surest of: those with the least −log max_k p_T(x)_k.

    Args:
      images: (N, H, W, C), unlabelled. teacher: frozen. count: rows wanted, at most N.

    Returns:
      Row numbers (count,), the surest first; of equal ones the first.

    Raises:
      InputError: for more rows than there are.

    Source: Chen et al., Learning Student Networks in the Wild, CVPR 2021, and its released code.
    """
    if not 1 <= count <= len(images):
        raise InputError(f"between 1 and {len(images)} images can be chosen, got {count}")
    logits = np.asarray(teacher.predict(images), np.float64)
    largest = logits.max(1)
    unsure = np.log(np.exp(logits - largest[:, None]).sum(1))
    return np.argsort(unsure, kind="stable")[:count]


def adaptation_matrix(free: Array, accuracy: float | Array) -> Array:
    """Q (K, K): Q_ij is the probability that the teacher answers j where i is right.

    Q_ii = ρ; the others of row i are (1 − ρ)·σ(θ_i).

    Args:
      free: θ (K, K − 1). accuracy: ρ.
    """
    classes = free.shape[0]
    places = jnp.arange(classes - 1)[None] + (
        jnp.arange(classes - 1)[None] >= jnp.arange(classes)[:, None]
    )
    others = (1 - accuracy) * jax.nn.softmax(free, -1)
    return (accuracy * jnp.eye(classes)).at[jnp.arange(classes)[:, None], places].set(others)


def answer_weights(answers: np.ndarray, classes: int) -> np.ndarray:
    """Weights (K,) of mean 1, inversely proportional to how often a class is answered, plus 1."""
    inverse = 1 / (np.bincount(answers, minlength=classes) + 1)
    return (inverse * classes / inverse.sum()).astype(np.float32)


def dfnd(
    teacher: WhiteBox,
    student: Classifier,
    images: Array,
    settings: DFNDSettings,
    *,
    augment: Augmentation | None = None,
) -> Method:
    """Noisy distillation on unlabelled images.

    L = (1/B)·Σ_b w_{ŷ_b}·τ²·KL(p_T^τ ‖ p_S^τ) + α·Σ_b w_{ŷ_b}·(−log (p_S Q)_{ŷ_b}) / Σ_b w_{ŷ_b}
    with ŷ the teacher's class, w of `answer_weights` and Q of `adaptation_matrix`, which is learnt
    with the student: it takes over what the teacher gets wrong on such images.

    Args:
      teacher: frozen. student: gives the network; fresh parameters are drawn.
      images: (N, H, W, C) on the device, usually those of `most_certain`.
      settings: see `DFNDSettings`; ``adaptation=0, class_weights=False`` is plain distillation.
      augment: applied before both networks see the batch.

    Returns:
      A `Method` over `DFNDState` with metrics ``loss``, ``distillation`` and ``noisy``.

    Raises:
      InputError: networks of other images or classes.

    Source: Chen et al., Learning Student Networks in the Wild, CVPR 2021, and its released code.
    Deviations: batches are drawn with replacement. A rerun in a toolbox (mmrazor) chooses the surest
      half of every batch, not of the whole set; the authors choose once, and so does
      `most_certain`.
    """
    check_teacher(teacher, "dfnd")
    check_pair(teacher, student)
    check_arguments(augment, "augment")
    classes = teacher.num_classes
    weights = np.ones(classes, np.float32)
    if settings.class_weights:
        weights = answer_weights(teacher.predict(np.asarray(images)).argmax(1), classes)
    return as_method(
        _DFND(
            teacher=teacher,
            images=images,
            weights=jnp.asarray(weights),
            augment=augment,
            learner=Learner.of(student, settings.rule),
            settings=settings,
        )
    )


@record
class _DFND:
    teacher: WhiteBox
    images: Array
    weights: Array
    augment: Augmentation | None
    learner: Learner = static_field()
    settings: DFNDSettings = static_field()

    @property
    def adapting(self):
        """The optimiser of the adaptation matrix."""
        return scheduled("adam", self.settings.adaptation_rate, 0, "constant")

    def init(self, key: Key) -> DFNDState:
        classes = self.weights.shape[0]
        free = {"free": jnp.zeros((classes, classes - 1))}
        return DFNDState(
            self.learner.new(key), Training({"params": free}, self.adapting.init(free))
        )

    def step(self, key: Key, state: DFNDState) -> tuple[DFNDState, Metrics]:
        s = self.settings
        batch, _, key = draw_batch(key, self.images, s.batch_size, self.augment)
        answers = jax.lax.stop_gradient(self.teacher(batch))
        classes = jnp.argmax(answers, -1)
        weights = self.weights[classes]

        def objective(params: tuple[PyTree, PyTree]) -> tuple[Array, tuple[Metrics, PyTree]]:
            seen = self.learner.observe(
                {**state.student.variables, "params": params[0]}, batch, train=True, key=key
            )
            apart = jnp.mean(weights * response_kl(seen.logits, answers, s.temperature))
            matrix = adaptation_matrix(params[1]["free"], s.teacher_accuracy)
            said = jnp.einsum(
                "bi,ib->b", jax.nn.softmax(seen.logits), matrix[:, classes], precision="highest"
            )
            noisy = jnp.sum(-weights * jnp.log(said)) / jnp.sum(weights)
            loss = apart + s.adaptation * noisy
            return loss, ({"loss": loss, "distillation": apart, "noisy": noisy}, seen.updated)

        params = (state.student.variables["params"], state.adaptation.variables["params"])
        (_, (metrics, changed)), slopes = jax.value_and_grad(objective, has_aux=True)(params)
        student = updated_by(self.learner.optimizer, state.student, slopes[0], changed)
        adaptation = updated_by(self.adapting, state.adaptation, slopes[1], {})
        return DFNDState(student, adaptation), metrics


__all__ = [
    "DFNDSettings",
    "DFNDState",
    "adaptation_matrix",
    "answer_weights",
    "dfnd",
    "most_certain",
]
