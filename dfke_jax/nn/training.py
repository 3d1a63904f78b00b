"""Training a classifier from device-resident images: from labels, from soft targets, or from a
teacher's answers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.method import Method, Static, check_arguments, method
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float
from dfke_jax.nn.observation import Observed, observe
from dfke_jax.nn.precision import apply


class Training(NamedTuple):
    """State of a training run: the network's variables and the optimiser's state."""

    variables: PyTree
    optimizer_state: Any


Loss = Callable[[Array, Any], Array]
"""(logits (B, K), targets of the batch) -> loss (B,). A `jax.tree_util.Partial`, its numbers as
keyword arguments.
"""

Penalty = Callable[[PyTree], Array]
"""The network's parameters -> (). A `jax.tree_util.Partial`, its arrays as arguments."""

Adversary = Callable[[Key, Callable[[Array], Array], Array, Any], Array]
"""(key, the network as it is now: images -> logits, batch, its targets) -> the batch to learn from
instead. A `Partial`.
"""


def optimiser(
    name: str = "adam",
    learning_rate: float = 1e-3,
    steps: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """The usual optimisers; the same arguments give the same object, so that programs are compiled
    once.

    Args:
      name: ``adam``, ``adamw``, or ``sgd`` (Nesterov momentum).
      learning_rate: at the beginning.
      steps: over which it falls to zero along a cosine; 0 keeps it constant.
      momentum: for SGD.
      weight_decay: added to the gradient (SGD) or decoupled (AdamW).

    The numbers may be traced (the hyper-parameters of a `population`); those are not remembered.

    Raises:
      UnknownNameError: for another name. InputError: for numbers that are negative, infinite or
        NaN.
    """
    arguments = (name, learning_rate, steps, momentum, weight_decay)
    if any(isinstance(value, jax.Array) for value in arguments):
        return _optimiser(*arguments)
    if not all(0 <= value < math.inf for value in arguments[1:]):
        raise InputError(
            "learning_rate, steps, momentum and weight_decay must be finite and not negative, got "
            f"{learning_rate}, {steps}, {momentum} and {weight_decay}"
        )
    return _remembered(*arguments)


def _optimiser(
    name: str, learning_rate: float, steps: int, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(learning_rate, steps) if steps else learning_rate
    if name == "adam":
        return optax.adam(rate)
    if name == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay)
    if name == "sgd":
        return optax.chain(
            optax.add_decayed_weights(weight_decay),
            optax.sgd(rate, momentum, nesterov=momentum > 0),
        )
    raise UnknownNameError("optimiser", name, ("adam", "adamw", "sgd"))


_remembered = functools.lru_cache(maxsize=256)(_optimiser)


def training(
    classifier: Classifier,
    images: Array,
    targets: Any,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    augment: Augmentation | None = None,
    teacher: Callable[[Array], Any] | None = None,
    rows: Array | None = None,
    companions: tuple[Array, Any] | None = None,
    companions_per_batch: int = 2,
    penalty: Penalty | None = None,
    adversary: Adversary | None = None,
    fine_tune: bool = False,
) -> Method:
    """Stochastic training of a classifier, as a method.

    Every step draws `batch_size` rows with replacement, augments them, and descends the mean of
    `loss`. The network is in training mode, so batch normalisation uses the batch and updates its
    running statistics.

    Args:
      classifier: gives module and preprocessing; its variables are used with `fine_tune` alone
        (`init` draws fresh ones otherwise). Use `trained` to put the result back into it.
      images: (N, H, W, C) on the device, uint8 or float in the box.
      targets: pytree with leading axis N (labels, soft targets, a teacher's logits computed
        beforehand), or None with a `teacher`.
      loss: of the student's logits and the batch's targets.
      optimizer: see `optimiser`.
      batch_size: B.
      augment: applied to the batch, before the teacher too.
      teacher: answers the augmented batch; frozen. A pytree (`Classifier` or `Partial`).
      rows: () int32, how many rows of `images` to draw from, or (n,) integers, which ones (repeats
        count); all by default. With a table of them, many models train on shares of one array
        (`population`).
      companions: (T, H, W, C) and targets with leading axis T: rows of a second table,
        `companions_per_batch` of which, drawn without replacement, stand beside every batch as they
        are (not augmented); the loss is the mean over both. This is how a watermark's triggers are
        learnt.
      companions_per_batch: 1 to T.
      penalty: parameters -> (), added to the loss. A `Partial`, its arrays as arguments.
      adversary: moves every batch, companions excepted, to where the network is worst before the
        network learns from it; targets are those of the batch as it was. This is adversarial
        training (Madry et al., ICLR 2018, equation 2.1).
      fine_tune: begin from the classifier's own variables, with a new optimiser.

    Returns:
      A `Method` over `Training` with metric ``loss`` (without the penalty, which is ``penalty``).

    Raises:
      InputError: for neither or both of targets and teacher, a batch size below 1, companions of
        another shape, with a teacher, or fewer than are to stand beside a batch, a bare function as
        augmentation.
    """
    if (targets is None) == (teacher is None):
        raise InputError(
            "give either targets or a teacher that answers every batch, not both and not neither"
        )
    if companions is not None:
        _check_companions(images, companions, companions_per_batch, teacher)
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    check_arguments(augment, "augment")
    if teacher is not None and jax.tree_util.treedef_is_leaf(jax.tree.structure(teacher)):
        teacher = Partial(teacher)  # a bare function
    fixed = _Fixed(
        classifier.module,
        classifier.preprocessing,
        classifier.input_shape,
        optimizer,
        batch_size,
        companions_per_batch,
    )
    start = classifier.variables if fine_tune else None
    task = _Task(
        images, targets, loss, augment, teacher, rows, companions, penalty, adversary, start
    )
    return method(_init, _step, Static(fixed), task)


class _Fixed(NamedTuple):
    module: Any
    preprocessing: Any
    shape: tuple[int, int, int]
    optimizer: optax.GradientTransformation
    batch_size: int
    companions_per_batch: int


class _Task(NamedTuple):
    """The arguments of `training` that are arrays, or pytrees of them."""

    images: Array
    targets: Any
    loss: Loss
    augment: Augmentation | None
    teacher: Callable | None
    rows: Array | None
    companions: tuple[Array, Any] | None
    penalty: Penalty | None
    adversary: Adversary | None
    start: PyTree


def _check_companions(
    images: Array, companions: tuple[Array, Any], count: int, teacher: Any
) -> None:
    if teacher is not None:
        raise InputError("companions have targets of their own; give targets, not a teacher")
    shape = jnp.shape(companions[0])
    if shape[1:] != jnp.shape(images)[1:]:
        raise InputError(
            f"companions of shape {shape[1:]} beside images of shape {jnp.shape(images)[1:]}"
        )
    if not 1 <= count <= shape[0]:
        raise InputError(f"{count} companions per batch of {shape[0]}; give 1 to {shape[0]}")


def _init(fixed: Static, task: _Task, key: Key) -> Training:
    of: _Fixed = fixed.value
    if task.start is None:
        start = Classifier.create(of.module, key, of.shape, of.preprocessing).variables
    else:
        start = jax.tree.map(jnp.array, task.start)
    return Training(start, of.optimizer.init(start["params"]))


def _step(fixed: Static, task: _Task, key: Key, state: Training) -> tuple[Training, Metrics]:
    module, preprocessing, _, optimizer, batch_size, companions_per_batch = fixed.value
    images, targets, loss, augment, teacher, rows, companions, penalty, adversary, _ = task
    row_key, augment_key, dropout_key = jax.random.split(key, 3)
    if rows is not None and jnp.ndim(rows) == 1:
        chosen = rows[jax.random.randint(row_key, (batch_size,), 0, rows.shape[0])]
    else:
        chosen = jax.random.randint(
            row_key, (batch_size,), 0, images.shape[0] if rows is None else rows
        )
    batch = constrain_samples(as_float(images[chosen]))
    if augment is not None:
        batch = augment(augment_key, batch)
    wanted = jax.tree.map(lambda leaf: leaf[chosen], targets) if teacher is None else teacher(batch)
    wanted = jax.lax.stop_gradient(wanted)
    if adversary is not None:
        now = Partial(_logits, Static((module, preprocessing)), state.variables)
        batch = jax.lax.stop_gradient(adversary(jax.random.fold_in(key, 4), now, batch, wanted))
    if companions is not None:
        beside = jax.random.choice(
            jax.random.fold_in(key, 3),
            companions[0].shape[0],
            (companions_per_batch,),
            replace=False,
        )
        batch = jnp.concatenate([batch, as_float(companions[0][beside])])
        wanted = jax.tree.map(
            lambda all_, own: jnp.concatenate([all_, own[beside]]), wanted, companions[1]
        )

    def mean_loss(seen: Observed, params: PyTree) -> tuple[Array, Metrics]:
        value = jnp.mean(loss(seen.logits, wanted))
        if penalty is None:
            return value, {"loss": value}
        extra = penalty(params)
        return value + extra, {"loss": value, "penalty": extra}

    state, _, metrics = learn(
        module, optimizer, state, preprocessing(batch), mean_loss, key=dropout_key
    )
    return state, metrics


Objective = Callable[[PyTree], tuple[Array, tuple[Any, PyTree]]]
"""parameters -> (value, (anything beside it, changed collections))."""


def descend(
    optimizer: optax.GradientTransformation, training: Training, objective: Objective
) -> tuple[Training, Array, Any]:
    """One update down the gradient of an objective: the training after it, its value before, and
    what stood beside it.
    """
    (value, (beside, changed)), gradient = jax.value_and_grad(objective, has_aux=True)(
        training.variables["params"]
    )
    return updated_by(optimizer, training, gradient, changed), value, beside


def learn(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    training: Training,
    inputs: Array,
    loss: Callable[[Observed, PyTree], tuple[Array, Any]],
    *,
    key: Key,
    activations: bool = False,
) -> tuple[Training, Array, Any]:
    """`descend` for a network in training mode, whose normalisation takes the batch and moves its
    running statistics.

    Args:
      module: the network. inputs: what it takes, after preprocessing.
      loss: (seen of the batch, parameters) -> (value, anything beside it).
      key: of dropout. activations: whether the loss reads them.
    """

    def objective(params: PyTree) -> tuple[Array, tuple[Any, PyTree]]:
        variables = {**training.variables, "params": params}
        seen = observe(module, variables, inputs, train=True, activations=activations, key=key)
        value, beside = loss(seen, params)
        return value, (beside, seen.updated)

    return descend(optimizer, training, objective)


def updated_by(
    optimizer: optax.GradientTransformation,
    training: Training,
    gradient: PyTree,
    statistics: PyTree,
) -> Training:
    """The training state after one update; `statistics` replace the network's."""
    params = training.variables["params"]
    updates, optimizer_state = optimizer.update(gradient, training.optimizer_state, params)
    return Training(
        {**training.variables, **statistics, "params": optax.apply_updates(params, updates)},
        optimizer_state,
    )


def _logits(static: Static, variables: PyTree, images: Array) -> Array:
    module, preprocessing = static.value
    return apply(module, variables, preprocessing(images), train=False)


def on_images(method_: Method, images: Array, rows: Array) -> Method:
    """The same training (one with a `teacher`), drawing from the first `rows` of other images: a
    pool that grows.
    """
    fixed, task = method_.step.args  # type: ignore[attr-defined]
    if task.teacher is None:
        raise InputError(
            "only a training with a teacher can move to other images: a table of targets belongs "
            "to its own"
        )
    return method(_init, _step, fixed, task._replace(images=images, rows=rows))


def trained(classifier: Classifier, state: Training) -> Classifier:
    """The classifier with the variables of a training state (stacked, if the state is)."""
    return dataclasses.replace(classifier, variables=state.variables)


__all__ = [
    "Adversary",
    "Loss",
    "Objective",
    "Penalty",
    "Training",
    "descend",
    "learn",
    "on_images",
    "optimiser",
    "trained",
    "training",
    "updated_by",
]
