"""Jacobian-based data set augmentation: a few seeds, and steps along the clone's gradient away from
them.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from dfke_jax.core.errors import InputError
from dfke_jax.core.method import Attack
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Augmentation, Key, Predict
from dfke_jax.extraction.common import steps_for
from dfke_jax.extraction.pool import CloneTraining, new_clone, train_clone
from dfke_jax.extraction.pool_attack import GrowingAttack
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal


@dataclasses.dataclass(frozen=True)
class JacobianSettings:
    """How the set grows.

    Attributes:
      rows_per_step: N₀, the number of seeds, and rows asked per step.
      augmentations: ρ, doublings of the set (published: 6). The attack is run for `rounds` = 2^ρ
        steps.
      step_size: λ, in units of pixels (published: 0.1).
      hard: whether labels alone are learnt, as published, whatever is answered.
      clone: after the seeds and after every doubling, from new parameters (published: SGD 0.01 with
        momentum 0.9).

    Raises:
      InputError: for numbers outside their range.
    """

    rows_per_step: int = 150
    augmentations: int = 6
    step_size: float = 0.1
    hard: bool = True
    clone: CloneTraining = CloneTraining(
        steps=1000, batch_size=128, learning_rate=0.01, momentum=0.9, weight_decay=0.0, decay_at=()
    )

    def __post_init__(self):
        if self.rows_per_step < 1 or self.augmentations < 0 or not self.step_size > 0:
            raise InputError(
                "rows_per_step must be at least 1, augmentations not negative and step_size "
                f"positive, got {self.rows_per_step}, {self.augmentations} and {self.step_size}"
            )

    @property
    def rounds(self) -> int:
        """Steps that spend the budget: 2^ρ."""
        return 2**self.augmentations

    @property
    def budget(self) -> int:
        """Rows asked in all: N₀·2^ρ."""
        return self.rows_per_step * self.rounds

    def with_budget(self, budget: int) -> Self:
        """As many seeds as a budget of rows pays for with the same number of doublings (see
        `steps_for`).
        """
        return dataclasses.replace(self, rows_per_step=steps_for(budget, self.rounds))


class JacobianState(NamedTuple):
    """State of the augmentation, T = N₀·2^ρ.

    Attributes:
      images: (T, H, W, C), the seeds and what was made of them, filled from the front. targets: (T,
        K).
      filled: () int32. clone: its training state; it changes only when the set has doubled.
    """

    images: Array
    targets: Array
    filled: Array
    clone: Training


def jacobian_augmentation(
    clone: Classifier,
    seeds: Array,
    reveal: Reveal,
    settings: JacobianSettings | None = None,
    *,
    augment: Augmentation | None = None,
) -> Attack:
    """Doubles a set ρ times: X ← X ∪ {x + λ·sign ∂ log S_{O(x)}(x)/∂x : x ∈ X}, O(x) the answered
    label.

    Only the new points are asked, so that N₀·2^ρ rows are sent in all. Every step asks a block of
    N₀ rows: a doubling from 2^(e−1)·N₀ to 2^e·N₀ rows takes 2^(e−1) steps, all made with the clone
    as it was when the doubling began, and the clone is trained at its end. Steps of one size let
    the attack be compiled once and scanned.

    Args:
      clone: gives the network.
      seeds: (N₀, H, W, C), uint8 or float in the clone's box.
      reveal: what the oracle answers. settings: see `JacobianSettings`.
      augment: of the training's batches.

    Returns:
      An `Attack` over `JacobianState`. Metrics: ``asked`` rows so far, and how well the clone
        predicted this step's answers
      before it learnt them (``loss``, ``agreement``).

    Raises:
      InputError: for seeds that do not fit.

    Source: Papernot et al., Practical Black-Box Attacks against Machine Learning, AsiaCCS 2017,
    algorithm 1.
    Deviations: new points are clipped to the box (an endpoint may refuse others); the gradient is
    of the log-probability, whose sign is that of the probability's and which does not vanish; no
    reservoir sampling.
    """
    settings = settings or JacobianSettings()
    if seeds.shape[0] > settings.rows_per_step:
        raise InputError(
            f"rows_per_step is the number of seeds: got {settings.rows_per_step} and "
            f"{seeds.shape[0]} seeds"
        )
    return _Jacobian.on(
        clone,
        seeds,
        reveal,
        settings,
        augment=augment,
        hard=settings.hard,
        images=settings.rows_per_step,
    )


def jacobian_rows(
    classifier: Predict,
    images: Array,
    labels: Array,
    step_size: float,
    box: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """x + λ·sign ∂ log softmax(f(x))_y/∂x, clipped to the box.

    Args:
      images: (B, H, W, C) floats. labels: y, (B,) integers. step_size: λ.
    """

    def total(images: Array) -> Array:
        scores = jax.nn.log_softmax(classifier(images))
        return jnp.sum(jnp.take_along_axis(scores, labels[:, None], 1))

    return jnp.clip(images + step_size * jnp.sign(jax.grad(total)(images)), *box)


@record
class _Jacobian(GrowingAttack[JacobianSettings]):
    """Its pool are the seeds."""

    def init(self, key: Key) -> JacobianState:
        settings = self.settings
        images = jnp.zeros((settings.budget, *self.pool.shape[1:]))
        targets = jnp.zeros((settings.budget, self.clone.num_classes))
        return JacobianState(
            images, targets, jnp.zeros((), jnp.int32), new_clone(self.clone, settings.clone, key)
        )

    def ask(self, key: Key, state: JacobianState) -> tuple[JacobianState, Array]:
        settings, count = self.settings, self.settings.rows_per_step
        blocks = state.filled // count
        # the set at the beginning of this doubling is the largest power of two of blocks that are
        # filled
        doubled = jnp.sum(2 ** jnp.arange(settings.augmentations + 1) <= blocks)
        begin = state.filled - count * jnp.where(blocks > 0, 2 ** (doubled - 1), 0)
        parents = lax.dynamic_slice_in_dim(state.images, begin, count)
        labels = jnp.argmax(lax.dynamic_slice_in_dim(state.targets, begin, count), -1)
        box = self.clone.preprocessing.box
        made = jacobian_rows(self.learner(state), parents, labels, settings.step_size, box)
        return state, jnp.where(blocks > 0, made, as_float(self.pool))

    def learn(self, key: Key, before: JacobianState, told: JacobianState) -> Training:
        settings, filled = self.settings, told.filled
        # when the set has doubled
        due = jnp.any(
            filled // settings.rows_per_step == 2 ** jnp.arange(settings.augmentations + 1)
        )
        return train_clone(
            key,
            self.clone,
            told.images,
            told.targets,
            filled,
            settings.clone,
            start=told.clone,
            due=due,
            augment=self.augment,
        )


__all__ = ["JacobianSettings", "JacobianState", "jacobian_augmentation", "jacobian_rows"]
