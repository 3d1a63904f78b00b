"""Feature distillation: the student's hidden layers follow the teacher's, by hints or by attention
maps.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Method, Static, as_method, check_arguments
from dfke_jax.core.records import record, static_field
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.distillation.needs import check_teacher
from dfke_jax.distillation.observed import check_pair, draw_batch, observed_distillation
from dfke_jax.distillation.zskt import attention_term, shared_maps
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.losses import HintRegressor, hint_loss, response_kl
from dfke_jax.nn.observation import Observed
from dfke_jax.nn.players import Learner
from dfke_jax.nn.training import Training, descend, optimiser
from dfke_jax.nn.whitebox import WhiteBox


@dataclasses.dataclass(frozen=True)
class AttentionSettings:
    """What the student's maps follow.

    Attributes:
      attention: β, in the released units: the mean over pixels of the squared difference of two
        normalised maps. Published: 1,000. 0 is the control, `knowledge_distillation`.
      layers: whose maps are matched; by default every layer whose maps have equal height and width
        in both networks.
      temperature: τ of the answers' term.
    """

    attention: float = 1000.0
    layers: tuple[str, ...] = ()
    temperature: float = 20.0

    def __post_init__(self):
        if not self.attention >= 0 or not self.temperature > 0:
            raise InputError(
                "attention must not be negative and the temperature positive, got "
                f"{self.attention} and {self.temperature}"
            )


def attention_distillation(
    student: Classifier,
    teacher: WhiteBox,
    images: Array,
    settings: AttentionSettings,
    *,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
    augment: Augmentation | None = None,
) -> Method:
    """Trains a student on the teacher's attention maps, and on its answers.

    L = τ²·KL(p_T^τ ‖ p_S^τ) + β·Σ_l (1/H_l W_l)·‖Q_S^l − Q_T^l‖² with Q = F/‖F‖₂ and
    F = vec(mean_c A_c²).

    Args:
      student, teacher, images, steps, batch_size, learning_rate, optimizer, augment: as of
        `observed_distillation`.
      settings: see `AttentionSettings`.

    Raises:
      InputError: networks that share no layer with maps of one size, or lack one that is named.

    Source: Zagoruyko and Komodakis, Paying More Attention to Attention, ICLR 2017, equation 2.
    Deviations: layers are taken before their non-linearity; no labels.
    """
    check_teacher(teacher, "attention_distillation")
    check_pair(teacher, student)
    names = shared_maps(teacher, student, settings.layers)
    loss = Partial(
        _attention_loss, Static(names), float(settings.attention), float(settings.temperature)
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


def _attention_loss(
    names: Static, attention: Array, temperature: Array, student: Observed, teacher: Observed
) -> Array:
    answers = response_kl(student.logits, teacher.logits, temperature)
    return answers + attention_term(names.value, attention, student, teacher)


def hint_training(
    student: Classifier,
    teacher: WhiteBox,
    images: Array,
    *,
    layer: str = "",
    steps: int = 500,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    optimizer: str = "adam",
    augment: Augmentation | None = None,
) -> Method:
    """The first stage of FitNets: the student's lower half learns a hidden layer of the teacher.

    min over both of ½·‖u(x) − r(v(x))‖² / n, with u (n units) and v one layer of teacher and
    student, and r a linear map, 1×1 over maps. `hinted` gives the student with which
    ``knowledge_distillation(..., fine_tune=True)``, the second stage, begins.

    Args:
      student, teacher, images, steps, batch_size, learning_rate, optimizer, augment: as of
        `observed_distillation`.
      layer: the guided one, under one name in both networks; by default the middle one of
        `shared_layers`.

    Returns:
      A `Method` over `dfke_jax.nn.Training` of student and regressor with metric ``loss``.

    Raises:
      InputError: for a layer that only one network has, or whose maps differ in size.

    Source: Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, section 2 and algorithm 1.
    Deviations: the mean over units, so that one rate serves layers of any size; layers are taken
    before their non-linearity.
    """
    check_teacher(teacher, "hint_training")
    check_pair(teacher, student)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    check_arguments(augment, "augment")
    names = shared_layers(teacher, student)
    if not names or (layer and layer not in names):
        raise InputError(
            f"a hint needs a layer of one size in both networks; they share "
            f"{', '.join(names) or 'none'}" + (f", and {layer} was asked for" if layer else "")
        )
    layer = layer or names[(len(names) - 1) // 2]
    shape = jax.eval_shape(
        teacher.activations, jax.ShapeDtypeStruct((1, *teacher.input_shape), jnp.float32)
    )
    return as_method(
        _Hints(
            teacher=teacher,
            images=images,
            augment=augment,
            learner=Learner.of(student, optimiser(optimizer, learning_rate, steps)),
            regressor=HintRegressor(shape[layer].shape[-1]),
            layer=layer,
            batch_size=batch_size,
        )
    )


def shared_layers(teacher: WhiteBox, student: Classifier) -> tuple[str, ...]:
    """Hidden layers of both networks that differ in width at most, in the order of their names."""
    images = jax.ShapeDtypeStruct((2, *teacher.input_shape), jnp.float32)
    theirs, ours = (jax.eval_shape(of.activations, images) for of in (teacher, student))
    return tuple(
        name
        for name in sorted(theirs)
        if name not in ("features", "logits")
        and name in ours
        and len(theirs[name].shape) in (2, 4)
        and theirs[name].shape[:-1] == ours[name].shape[:-1]
    )


def hinted(student: Classifier, state: Training) -> Classifier:
    """The student after `hint_training`, its regressor taken off."""
    params = state.variables["params"]["student"]
    return dataclasses.replace(student, variables={**state.variables, "params": params})


@record
class _Hints:
    teacher: WhiteBox
    images: Array
    augment: Augmentation | None
    learner: Learner = static_field()
    regressor: HintRegressor = static_field()
    layer: str = static_field()
    batch_size: int = static_field()

    def init(self, key: Key) -> Training:
        """One training of both: parameters ``{"student": ..., "regressor": ...}``."""
        made = self.learner.new(key).variables
        blank = jnp.zeros((1, *self.learner.input_shape))
        seen = self.learner.observe(made, blank, activations=True)
        regressor = self.regressor.init(jax.random.fold_in(key, 1), seen.activations[self.layer])
        params = {"student": made["params"], "regressor": regressor["params"]}
        return Training({**made, "params": params}, self.learner.optimizer.init(params))

    def step(self, key: Key, state: Training) -> tuple[Training, Metrics]:
        batch, _, key = draw_batch(key, self.images, self.batch_size, self.augment)
        wanted = self.teacher.observe(batch, activations=True).activations[self.layer]

        def objective(params: PyTree) -> tuple[Array, tuple[None, PyTree]]:
            seen = self.learner.observe(
                {**state.variables, "params": params["student"]},
                batch,
                train=True,
                activations=True,
                key=key,
            )
            fitted = self.regressor.apply(
                {"params": params["regressor"]}, seen.activations[self.layer]
            )
            units = wanted.size // len(wanted)
            return jnp.mean(hint_loss(jnp.asarray(fitted), wanted)) / units, (None, seen.updated)

        state, loss, _ = descend(self.learner.optimizer, state, objective)
        return state, {"loss": loss}


__all__ = [
    "AttentionSettings",
    "attention_distillation",
    "hint_training",
    "hinted",
    "shared_layers",
]
