"""What attacks that query a pool of images share: the table of answers and the clone's training.

The pool (N, H, W, C) lives on the device, uint8 or float in the box, and travels as an argument.
What was asked is kept as row numbers beside the targets read out of the answers; both are allocated
for the whole budget and filled from the front, so that every step has the same shapes. Every state
has a field ``clone``, a `dfke_jax.nn.training.Training`: put it back with
`dfke_jax.nn.training.trained`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.extraction.common import steps_for
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.losses import soft_cross_entropy
from dfke_jax.nn.training import Training, trained, training
from dfke_jax.oracle.reveal import Reveal, answered_labels, answered_probabilities, check_classes


@dataclasses.dataclass(frozen=True)
class CloneTraining:
    """How a clone learns the answers: soft cross-entropy on batches drawn with replacement.

    With a temperature τ the answered probabilities p and the clone's q are both flattened first:
    the loss is τ²·H(p^(1/τ)/Σ p^(1/τ), q^(1/τ)/Σ q^(1/τ)). Probabilities that come unrounded tell
    by their logarithms how the victim ranks the classes that it excludes, and on images of
    something else that is most of what they tell. No paper on extraction does this; 1 is the
    published loss.

    Attributes:
      steps: updates of one training. Papers give epochs: e epochs over T rows are e·T/B updates.
      batch_size: B.
      optimizer: ``sgd`` (with plain momentum) or ``adam``.
      learning_rate: at the beginning; times `decay_factor` at each fraction of the steps in
        `decay_at`.
      momentum: for SGD.
      weight_decay: added to the gradient (an L2 penalty), for both optimisers.
      temperature: τ ≥ 1. Labels are learnt without: there is nothing to flatten.
      checks: how often, evenly along the training, the clone is compared with the held-out answers;
        the variables of the best comparison are kept. Without held-out rows the last ones are.

    Raises:
      InputError: for numbers outside their range, or steps that are not a multiple of `checks`.
      UnknownNameError: for another optimiser.
    """

    steps: int = 93_750
    batch_size: int = 64
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.5
    weight_decay: float = 5e-4
    decay_at: tuple[float, ...] = (0.6,)
    decay_factor: float = 0.1
    temperature: float = 1.0
    checks: int = 1

    def __post_init__(self):
        if not self.temperature >= 1:
            raise InputError(f"temperature must be at least 1, got {self.temperature}")
        if self.optimizer not in ("sgd", "adam"):
            raise UnknownNameError("optimiser of a clone", self.optimizer, ("sgd", "adam"))
        if self.steps < 1 or self.batch_size < 1 or self.checks < 1 or self.steps % self.checks:
            raise InputError(
                "steps, batch_size and checks must be at least 1 and steps a multiple of checks, "
                f"got {self.steps}, {self.batch_size} and {self.checks}"
            )
        if (
            self.learning_rate <= 0
            or self.weight_decay < 0
            or not 0 <= self.momentum < 1
            or self.decay_factor <= 0
        ):
            raise InputError(
                "learning_rate and decay_factor must be positive, weight_decay not negative and "
                f"momentum in [0, 1), got {self.learning_rate}, {self.decay_factor}, "
                f"{self.weight_decay} and {self.momentum}"
            )
        if any(not 0 < at < 1 for at in self.decay_at):
            raise InputError(
                f"decay_at must hold fractions of the steps, in (0, 1), got {self.decay_at}"
            )

    @property
    def rule(self) -> optax.GradientTransformation:
        """The optimiser; equal settings give the same object, so that programs are compiled once."""
        return _rule(self)


SMALL_CLONE = CloneTraining(
    steps=2000,
    optimizer="adam",
    learning_rate=2e-3,
    weight_decay=0.0,
    decay_at=(0.6, 0.85),
    decay_factor=0.2,
    temperature=5.0,
)
"""For LeNets on grey images and 10,000 to 20,000 rows. Rate and temperature were chosen by what
clones of one victim, which no experiment uses, answered to 10,000 training images of MNIST that it
had not seen.
"""


@functools.lru_cache(maxsize=256)
def _rule(settings: CloneTraining) -> optax.GradientTransformation:
    falls = {round(at * settings.steps): settings.decay_factor for at in settings.decay_at}
    rate = optax.piecewise_constant_schedule(settings.learning_rate, falls)
    descent = (
        optax.adam(rate) if settings.optimizer == "adam" else optax.sgd(rate, settings.momentum)
    )
    return optax.chain(optax.add_decayed_weights(settings.weight_decay), descent)


@dataclasses.dataclass(frozen=True)
class PoolAttackSettings:
    """What every attack on a pool is told. An attack is run for `rounds` steps, not more.

    Attributes:
      budget: rows sent in all, a multiple of `rows_per_step`, at most the pool's.
      rows_per_step: q, rows sent per step.
      validation: fraction of each step's rows that is held out of training; it chooses among a
        training's checks.
      clone: how the clone is trained.

    Raises:
      InputError: for sizes that do not fit.
    """

    budget: int = 60_000
    rows_per_step: int = 1000
    validation: float = 0.0
    clone: CloneTraining = CloneTraining()

    def __post_init__(self):
        if self.rows_per_step < 1 or self.budget < 1 or self.budget % self.rows_per_step:
            raise InputError(
                f"the budget must be a positive multiple of rows_per_step, got {self.budget} and "
                f"{self.rows_per_step}"
            )
        if not 0 <= self.validation < 1 or self.held_per_step >= self.rows_per_step:
            raise InputError(
                "validation must lie in [0, 1) and leave rows to learn from, got "
                f"{self.validation} of {self.rows_per_step} rows"
            )

    @property
    def rounds(self) -> int:
        """Steps that spend the budget."""
        return self.budget // self.rows_per_step

    @property
    def held_per_step(self) -> int:
        """Rows of each step that are held out."""
        return round(self.validation * self.rows_per_step)

    def with_budget(self, budget: int) -> Self:
        """The same settings for as many whole steps as a budget of rows pays for (see `steps_for`)."""
        return dataclasses.replace(
            self, budget=steps_for(budget, self.rows_per_step) * self.rows_per_step
        )


Settings = TypeVar("Settings")


def without_temperature(settings: Settings, reveal: Reveal, hard: bool = False) -> Settings:
    """The settings (with a field ``clone``), without the temperature where labels alone are learnt."""
    clone: CloneTraining = settings.clone  # type: ignore[attr-defined]
    if clone.temperature == 1 or not (hard or reveal.kind == "label"):
        return settings
    return dataclasses.replace(settings, clone=dataclasses.replace(clone, temperature=1.0))  # type: ignore[type-var]


class Answered(NamedTuple):
    """Rows of the pool and what was answered, filled from the front.

    Attributes:
      indices: (T,) int32 into the pool. targets: (T, K) float32, rows sum to one. filled: () int32.
    """

    indices: Array
    targets: Array
    filled: Array


class Labelled(NamedTuple):
    """Everything answered so far: rows to learn from, and rows held out to choose by.

    Attributes:
      learnt: T = budget without the held-out rows. held: the others; T may be 0.
    """

    learnt: Answered
    held: Answered

    @property
    def asked(self) -> Array:
        """Rows answered so far, () int32."""
        return self.learnt.filled + self.held.filled


def empty_table(settings: PoolAttackSettings, num_classes: int) -> Labelled:
    """Empty tables with room for the budget."""
    held = settings.rounds * settings.held_per_step
    return Labelled(_empty(settings.budget - held, num_classes), _empty(held, num_classes))


def _empty(rows: int, num_classes: int) -> Answered:
    return Answered(
        jnp.zeros(rows, jnp.int32), jnp.zeros((rows, num_classes)), jnp.zeros((), jnp.int32)
    )


def label(key: Key, labelled: Labelled, indices: Array, targets: Array, held: int) -> Labelled:
    """Adds a step's answers; `held` of them, drawn at random, are held out. What exceeds the tables
    is dropped.

    Args:
      indices: (q,) of the rows asked. targets: (q, K).
    """
    order = jax.random.permutation(key, indices.shape[0])
    learnt, out = order[held:], order[:held]
    return Labelled(
        _append(labelled.learnt, indices[learnt], targets[learnt]),
        _append(labelled.held, indices[out], targets[out]),
    )


def _append(table: Answered, indices: Array, targets: Array) -> Answered:
    place = table.filled + jnp.arange(indices.shape[0], dtype=jnp.int32)
    return Answered(
        table.indices.at[place].set(indices.astype(jnp.int32), mode="drop"),
        table.targets.at[place].set(targets.astype(jnp.float32), mode="drop"),
        jnp.minimum(table.filled + indices.shape[0], table.indices.shape[0]),
    )


def read_targets(answers: PyTree, reveal: Reveal, num_classes: int, hard: bool = False) -> Array:
    """(B, K) targets from any kind of answer; one-hot labels if `hard`.

    Raises:
      InputError: for answers of another number of classes.
    """
    answers = jnp.asarray(answers)
    check_classes(answers, reveal, num_classes)
    if hard:
        return jax.nn.one_hot(answered_labels(answers, reveal), num_classes)
    return answered_probabilities(answers, reveal, num_classes)


def in_batches(function: Callable[[Array], PyTree], images: Array, batch_size: int = 500) -> PyTree:
    """``function(images)`` over any number of rows, `batch_size` at a time, inside one program.

    Args:
      function: float images (B, H, W, C) -> pytree with leading axis B; rows must not touch one
        another.
      images: (N, H, W, C), N ≥ 1, uint8 or float.
    """
    rows = images.shape[0]
    size = min(batch_size, rows)
    batches = -(-rows // size)
    places = jnp.minimum(jnp.arange(batches * size, dtype=jnp.int32), rows - 1).reshape(
        batches, size
    )
    made = lax.map(lambda place: function(as_float(images[place])), places)
    return jax.tree.map(lambda leaf: leaf.reshape(batches * size, *leaf.shape[2:])[:rows], made)


def train_clone(
    key: Key,
    clone: Classifier,
    images: Array,
    targets: Array,
    rows: Array,
    settings: CloneTraining,
    *,
    start: Training,
    due: Array | bool = True,
    fresh: bool = True,
    steps: int | Array | None = None,
    augment: Augmentation | None = None,
    held: tuple[Array, Array, Array] | None = None,
) -> Training:
    """Trains the clone on a table that is filled from the front, inside the caller's program.

    Args:
      images: (T, H, W, C). targets: (T, K). rows: () int32, how many of them count.
      settings: see `CloneTraining`.
      start: the clone's state so far.
      due: () bool; where False, nothing is trained and `start` is returned. The loop's length
        depends on it, so a training that is not due costs nothing.
      fresh: whether to begin from new parameters rather than from `start`.
      steps: instead of the settings'; a multiple of the checks, where there are held-out rows.
      augment: of every batch.
      held: images (V, H, W, C), targets (V, K) and how many count, to choose among the checks by
        agreement, the later of equals. Without it, or with V = 0, the last variables are kept.

    Returns:
      The training state. Its variables are the chosen ones.
    """
    learning = training(
        clone,
        images,
        targets,
        loss=Partial(_flattened, temperature=settings.temperature)
        if settings.temperature > 1
        else Partial(soft_cross_entropy),
        optimizer=settings.rule,
        batch_size=settings.batch_size,
        augment=augment,
        rows=rows,
    )
    init_key, step_key = jax.random.split(key)
    due = jnp.asarray(due)
    state = pick(due, learning.init(init_key), start) if fresh else start

    def update(i: Array, state: Training) -> Training:
        return learning.step(jax.random.fold_in(step_key, i), state)[0]

    steps = settings.steps if steps is None else steps
    if held is None or held[0].shape[0] == 0:
        return lax.fori_loop(0, jnp.where(due, steps, 0), update, state)
    length = steps // settings.checks

    def stretch(i: Array, carry: tuple[Training, PyTree, Array]) -> tuple[Training, PyTree, Array]:
        state, best, most = carry
        state = lax.fori_loop(i * length, (i + 1) * length, update, state)
        agreed = agreement_with(trained(clone, state), *held)
        return state, pick(agreed >= most, state.variables, best), jnp.maximum(agreed, most)

    carry = (state, state.variables, -jnp.ones(()))
    state, best, _ = lax.fori_loop(0, jnp.where(due, settings.checks, 0), stretch, carry)
    return Training(best, state.optimizer_state)


def _flattened(logits: Array, targets: Array, *, temperature: Array) -> Array:
    """The loss of `CloneTraining` with a temperature, (B, K), (B, K) -> (B,); probabilities of zero
    stand for 1e-30.
    """
    flat = jax.nn.softmax(jnp.log(jnp.maximum(targets, 1e-30)) / temperature)
    return temperature**2 * soft_cross_entropy(logits / temperature, flat)


def agreement_with(classifier: Classifier, images: Array, targets: Array, rows: Array) -> Array:
    """Fraction of the first `rows` images whose class is the targets' largest, () float32; 0 for no
    rows.
    """
    predicted = in_batches(lambda batch: jnp.argmax(classifier(batch), -1), images)
    counts = jnp.arange(images.shape[0]) < rows
    right = (predicted == jnp.argmax(targets, -1)) & counts
    return right.sum() / jnp.maximum(counts.sum(), 1).astype(jnp.float32)


def learn_labelled(
    key: Key,
    clone: Classifier,
    pool: Array,
    labelled: Labelled,
    settings: CloneTraining,
    start: Training,
    due: Array | bool = True,
    augment: Augmentation | None = None,
    steps: int | Array | None = None,
) -> Training:
    """`train_clone` from new parameters on everything answered, choosing by what was held out."""
    learnt, held = labelled
    return train_clone(
        key,
        clone,
        pool[learnt.indices],
        learnt.targets,
        learnt.filled,
        settings,
        start=start,
        due=due,
        augment=augment,
        steps=steps,
        held=(pool[held.indices], held.targets, held.filled),
    )


Learner = Callable[..., Training]
"""(key, clone, pool, labelled, settings, start, due, augment, steps) -> `Training`: how a clone
learns everything answered, as `learn_labelled` does. A `Partial`.
"""


def pick(condition: Array, new: PyTree, old: PyTree) -> PyTree:
    """`new` where the scalar condition holds, else `old`, over whole pytrees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def new_clone(clone: Classifier, settings: CloneTraining, key: Key) -> Training:
    """An untrained clone."""
    variables = Classifier.create(
        clone.module, key, clone.input_shape, clone.preprocessing
    ).variables
    return Training(variables, settings.rule.init(variables["params"]))


def prequential(clone: Classifier, rows: Array, targets: Array) -> Metrics:
    """How well the clone answers rows that it has not learnt yet: mean soft cross-entropy ``loss``
    and ``agreement``.
    """
    logits = clone(rows)
    agreed = jnp.argmax(logits, -1) == jnp.argmax(targets, -1)
    return {
        "loss": soft_cross_entropy(logits, targets).mean(),
        "agreement": agreed.mean(dtype=jnp.float32),
    }


def check_pool(clone: Classifier, pool: Array, budget: int) -> None:
    """Checks a pool's shape and size against the clone and the budget.

    Raises:
      InputError: naming what does not fit.
    """
    if pool.ndim != 4 or tuple(pool.shape[1:]) != tuple(clone.input_shape):
        expected = "×".join(map(str, clone.input_shape))
        raise InputError(
            f"the pool must be (N, H, W, C) with H×W×C = {expected}, got shape {pool.shape}"
        )
    if not (jnp.issubdtype(pool.dtype, jnp.floating) or pool.dtype == jnp.uint8):
        raise InputError(f"the pool must be uint8 or floating, got {pool.dtype}")
    if pool.shape[0] < budget:
        raise InputError(
            f"a budget of {budget} rows without replacement needs as many images, got "
            f"{pool.shape[0]}"
        )


__all__ = [
    "SMALL_CLONE",
    "Answered",
    "CloneTraining",
    "Labelled",
    "Learner",
    "PoolAttackSettings",
    "agreement_with",
    "check_pool",
    "empty_table",
    "in_batches",
    "label",
    "learn_labelled",
    "new_clone",
    "pick",
    "prequential",
    "read_targets",
    "train_clone",
    "without_temperature",
]
