"""ActiveThief: rounds of active learning on a public pool, the clone retrained from scratch in
each.
"""

import dataclasses
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax import lax

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Attack, check_arguments
from dfke_jax.core.records import record
from dfke_jax.core.types import Array, Augmentation, Key, Predict
from dfke_jax.extraction.common import steps_for
from dfke_jax.extraction.pool import (
    CloneTraining,
    Labelled,
    Learner,
    PoolAttackSettings,
    empty_table,
    in_batches,
    new_clone,
)
from dfke_jax.extraction.pool_attack import ChoosingAttack
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.training import Training
from dfke_jax.oracle.reveal import Reveal

SELECTORS = ("random", "entropy", "k_center", "dfal", "dfal_k_center")


@dataclasses.dataclass(frozen=True)
class ActiveThiefSettings(PoolAttackSettings):
    """How ActiveThief asks. Defaults follow the paper where it has an equivalent.

    Attributes:
      budget, rows_per_step: ten rounds of a tenth of the budget; the first is the random seed.
      validation: of every round's rows (published: 20%).
      clone: Adam 1e-3, L2 1e-3, batches of 150, the best of 40 comparisons with the held-out
        answers (published: up to 1,000 epochs, stopped after 100 without improvement).
      selector: ``entropy`` (uncertainty), ``k_center``, ``dfal``, ``dfal_k_center``, or ``random``.
      deepfool_steps: most steps of DeepFool.
      deepfool_classes: nearest classes by score that DeepFool considers.
      scoring_batch: rows of the pool scored at a time.
      round_steps: updates in the trainings before the last, which serve the choice of rows alone;
        as many as in the last (``clone.steps``), as published, by default.

    Raises:
      UnknownNameError: for another selector.
      InputError: for numbers outside their range.
    """

    budget: int = 20_000
    rows_per_step: int = 2000
    validation: float = 0.2
    clone: CloneTraining = CloneTraining(
        steps=20_000,
        batch_size=150,
        optimizer="adam",
        learning_rate=1e-3,
        weight_decay=1e-3,
        decay_at=(),
        checks=40,
    )
    selector: str = "dfal_k_center"
    deepfool_steps: int = 50
    deepfool_classes: int = 10
    scoring_batch: int = 500
    round_steps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.round_steps is not None and (
            self.round_steps < 1 or self.round_steps % self.clone.checks
        ):
            raise InputError(
                f"round_steps must be a positive multiple of the clone's {self.clone.checks} "
                f"checks, got {self.round_steps}"
            )
        if self.selector not in SELECTORS:
            raise UnknownNameError("selector", self.selector, SELECTORS)
        if self.deepfool_steps < 1 or self.deepfool_classes < 2 or self.scoring_batch < 1:
            raise InputError(
                "deepfool_steps and scoring_batch must be at least 1 and deepfool_classes at least "
                f"2, got {self.deepfool_steps}, {self.scoring_batch} and {self.deepfool_classes}"
            )

    def with_budget(self, budget: int) -> Self:
        """The same number of rounds, each of an equal share of a budget of rows (see `steps_for`)."""
        rows = steps_for(budget, self.rounds)
        return dataclasses.replace(self, budget=rows * self.rounds, rows_per_step=rows)


class ActiveThiefState(NamedTuple):
    """State of ActiveThief.

    Attributes:
      asked: (N,) bool. chosen: (q,) int32, rows of the round in progress. labelled: what was
        answered. clone: its training state.
    """

    asked: Array
    chosen: Array
    labelled: Labelled
    clone: Training


def active_thief(
    clone: Classifier,
    pool: Array,
    reveal: Reveal,
    settings: ActiveThiefSettings | None = None,
    *,
    augment: Augmentation | None = None,
    learning: Learner | None = None,
) -> Attack:
    """Asks in rounds: the first at random, the others what the clone finds most instructive;
    retrains in each.

    - entropy: the largest −Σ_k p_k log p_k of the clone;
    - k_center: greedily the image farthest, in the clone's probabilities, from everything asked so
      far;
    - dfal: the smallest DeepFool perturbation of the clone (`deepfool_norm`);
    - dfal_k_center: k_center among as many of the dfal order as the whole budget.

    Args:
      clone: gives the network; its dropout, if any, is used in training (published: 0.1 or 0.2).
      pool: (N, H, W, C). reveal: what the oracle answers; labels become one-hot targets.
      settings: see `ActiveThiefSettings`.
      augment: of the training's batches.
      learning: how the clone learns the answers, in every round: `mixmatch`, `rotation`; from them
        alone by default.

    Returns:
      An `Attack` over `ActiveThiefState`; a step is a round. Metrics: ``asked`` rows so far, and
      what the clone predicted of the round's answers before it learnt them (``loss``,
      ``agreement``).

    Raises:
      InputError: for a pool that does not fit.

    Source: Pal et al., ActiveThief, AAAI 2020, sections 4 and 5. Deviations: a fifth of every round
    is held out (the paper reserves a validation set at the beginning); the length of a training is
    fixed, and the kept clone is the one that agrees best with the held-out answers; the seed counts
    as a round and has its size.
    """
    check_arguments(learning, "learning")
    settings = settings or ActiveThiefSettings()
    return _ActiveThief.on(clone, pool, reveal, settings, augment=augment, learning=learning)


def entropies(probabilities: Array) -> Array:
    """−Σ_k p_k log p_k in nats, (N, K) -> (N,)."""
    return -jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), -1)


def distance_to_centres(
    points: Array, centres: Array, counts: Array, batch_size: int = 500
) -> Array:
    """Squared Euclidean distance of each point (N, K) to the nearest of the centres (M, K) that
    count (M,) bool.

    Infinite where no centre counts.
    """
    squares = jnp.where(counts, jnp.sum(jnp.square(centres), -1), jnp.inf)

    def nearest(batch: Array) -> Array:
        product = jnp.matmul(batch, centres.T, precision=lax.Precision.HIGHEST)
        distances = jnp.sum(jnp.square(batch), -1, keepdims=True) - 2 * product + squares[None]
        return jnp.maximum(jnp.min(distances, -1), 0)

    return in_batches(nearest, points, batch_size)


def k_center(points: Array, distances: Array, allowed: Array, count: int) -> Array:
    """Greedy k-center: `count` times the allowed point farthest from all centres, which becomes a
    centre.

    Args:
      points: (N, K). distances: (N,), squared, to the nearest centre so far
        (`distance_to_centres`).
      allowed: (N,) bool, at least `count` True.

    Returns:
      (count,) int32 in the order chosen; the first of equals.

    Source: Sener and Savarese, ICLR 2018, algorithm 1.
    """

    def one(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        distances, allowed = carry
        chosen = jnp.argmax(jnp.where(allowed, distances, -1)).astype(jnp.int32)
        near = jnp.sum(jnp.square(points - points[chosen][None]), -1)
        return (jnp.minimum(distances, near), allowed.at[chosen].set(False)), chosen

    return lax.scan(one, (distances, allowed), None, count)[1]


def deepfool_norm(
    classifier: Predict,
    images: Array,
    *,
    steps: int = 50,
    classes: int = 10,
    overshoot: float = 0.02,
) -> Array:
    """Length ‖r‖₂ of DeepFool's perturbation, which carries each image just over the nearest
    decision boundary.

    Repeats, until the class changes: with f_k the logits, k₀ the class at the start and, over the
    classes k ≠ k₀, w_k = ∇f_k − ∇f_{k₀}: l = argmin_k |f_k − f_{k₀}|/‖w_k‖ and r ← r + (|f_l −
    f_{k₀}|/‖w_l‖²)·w_l; the image is x + (1 + overshoot)·r. For a linear classifier that is one
    step to the closed form. Every further step is longer by 1e-4, so that an image on a boundary
    gets across.

    Args:
      classifier: images -> logits (B, K); rows must not touch one another.
      images: (B, H, W, C) floats.
      steps: at most so many; an image that has not changed class by then has the length reached.
      classes: only the classes with the largest logits at the start, so many with k₀, are
        considered.

    Returns:
      (B,), r without the overshoot.

    Source: Moosavi-Dezfooli, Fawzi and Frossard, DeepFool, CVPR 2016, algorithm 2. Deviation: the
    images are not kept in the box, as in the paper.
    """
    logits = classifier(images)
    order = lax.top_k(logits, min(classes, logits.shape[-1]))[1]
    first, others = order[:, 0], order[:, 1:].T  # (B,), (c, B)
    batch = images.shape[0]

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        i, moved, active = carry
        logits, back = jax.vjp(lambda x: classifier(x), images + (1 + overshoot) * moved)
        own = jax.nn.one_hot(first, logits.shape[-1])
        differences = jax.nn.one_hot(others, logits.shape[-1]) - own[None]
        normals = jax.vmap(lambda cotangent: back(cotangent)[0])(differences)  # (c, B, H, W, C)
        gaps = jnp.abs(jnp.sum(logits[None] * differences, -1))
        lengths = jnp.sqrt(jnp.sum(jnp.square(normals), (2, 3, 4)))
        ratios = gaps / jnp.maximum(lengths, 1e-12)
        nearest = jnp.argmin(ratios, 0)
        rows = jnp.arange(batch)
        scale = (ratios[nearest, rows] + 1e-4 * (i > 0)) / jnp.maximum(
            lengths[nearest, rows], 1e-12
        )
        moved = jnp.where(
            active[:, None, None, None],
            moved + scale[:, None, None, None] * normals[nearest, rows],
            moved,
        )
        changed = jnp.argmax(classifier(images + (1 + overshoot) * moved), -1) != first
        return i + 1, moved, active & ~changed

    start = (jnp.zeros((), jnp.int32), jnp.zeros_like(images), jnp.ones(batch, bool))
    _, moved, _ = lax.while_loop(lambda carry: (carry[0] < steps) & jnp.any(carry[2]), step, start)
    return jnp.sqrt(jnp.sum(jnp.square(moved), (1, 2, 3)))


def select(
    key: Key, clone: Classifier, pool: Array, state: ActiveThiefState, settings: ActiveThiefSettings
) -> Array:
    """(q,) int32 of the rows to ask next, by the settings' selector."""
    free, count = ~state.asked, settings.rows_per_step
    if settings.selector == "random":
        return _largest(jax.random.uniform(key, free.shape), free, count)
    if settings.selector in ("entropy", "k_center"):
        points = in_batches(
            lambda batch: jax.nn.softmax(clone(batch)), pool, settings.scoring_batch
        )
        if settings.selector == "entropy":
            return _largest(entropies(points), free, count)
        return _far(points, state.labelled, free, settings)

    def score(batch: Array) -> tuple[Array, Array]:
        logits = clone(batch)
        norm = deepfool_norm(
            clone, batch, steps=settings.deepfool_steps, classes=settings.deepfool_classes
        )
        return norm, jax.nn.softmax(logits)

    norms, points = in_batches(score, pool, settings.scoring_batch)
    if settings.selector == "dfal":
        return _largest(-norms, free, count)
    near = _largest(-norms, free, min(settings.budget, pool.shape[0]))
    return _far(points, state.labelled, jnp.zeros_like(free).at[near].set(True) & free, settings)


def _largest(scores: Array, free: Array, count: int) -> Array:
    return lax.top_k(jnp.where(free, scores, -jnp.inf), count)[1].astype(jnp.int32)


def _far(points: Array, labelled: Labelled, allowed: Array, settings: ActiveThiefSettings) -> Array:
    tables = (labelled.learnt, labelled.held)
    centres = jnp.concatenate([table.indices for table in tables])
    counts = jnp.concatenate(
        [jnp.arange(table.indices.shape[0]) < table.filled for table in tables]
    )
    distances = distance_to_centres(points, points[centres], counts, settings.scoring_batch)
    return k_center(points, distances, allowed, settings.rows_per_step)


@record
class _ActiveThief(ChoosingAttack[ActiveThiefSettings]):
    def init(self, key: Key) -> ActiveThiefState:
        settings = self.settings
        return ActiveThiefState(
            jnp.zeros(self.pool.shape[0], bool),
            jnp.zeros(settings.rows_per_step, jnp.int32),
            empty_table(settings, self.clone.num_classes),
            new_clone(self.clone, settings.clone, key),
        )

    def choose(self, key: Key, state: ActiveThiefState) -> Array:
        select_key, learner = jax.random.fold_in(key, 0), self.learner(state)
        at_random = dataclasses.replace(self.settings, selector="random")
        return lax.cond(
            state.labelled.asked == 0,  # there is no clone yet that could find anything instructive
            lambda: select(select_key, learner, self.pool, state, at_random),
            lambda: select(select_key, learner, self.pool, state, self.settings),
        )

    def label(
        self, key: Key, state: ActiveThiefState, rows: Array, targets: Array
    ) -> ActiveThiefState:
        told = super().label(key, state, rows, targets)
        return told._replace(asked=state.asked.at[state.chosen].set(True))

    def learn(self, key: Key, before: ActiveThiefState, told: ActiveThiefState) -> Training:
        settings, steps = self.settings, None
        if settings.round_steps is not None:
            ends = told.labelled.asked >= settings.budget
            steps = jnp.where(ends, settings.clone.steps, settings.round_steps)
        return self.learn_all(jax.random.fold_in(key, 2), told, told.clone, steps=steps)


__all__ = [
    "SELECTORS",
    "ActiveThiefSettings",
    "ActiveThiefState",
    "active_thief",
    "deepfool_norm",
    "distance_to_centres",
    "entropies",
    "k_center",
    "select",
]
