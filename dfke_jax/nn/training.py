"""Training a classifier from device-resident images: from labels, from soft targets, or from a teacher's answers."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.mesh import constrain_samples
from dfke_jax.core.method import Method, Static, method
from dfke_jax.core.types import Array, Augmentation, Key, Metrics, PyTree
from dfke_jax.nn.classifier import Classifier, as_float


class Training(NamedTuple):
    """State of a training run: the network's variables and the optimiser's state."""

    variables: PyTree
    optimizer_state: Any


Loss = Callable[[Array, Any], Array]
"""(logits (B, K), targets of the batch) -> loss (B,). A `jax.tree_util.Partial`, its numbers as keyword arguments."""


def optimiser(
    name: str = "adam",
    learning_rate: float = 1e-3,
    steps: int = 0,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """The usual optimisers; the same arguments give the same object, so that programs are compiled once.

    Args:
      name: ``adam``, ``adamw``, or ``sgd`` (Nesterov momentum).
      learning_rate: at the beginning.
      steps: over which it falls to zero along a cosine; 0 keeps it constant.
      momentum: for SGD.
      weight_decay: added to the gradient (SGD) or decoupled (AdamW).

    The numbers may be traced (the hyper-parameters of a `population`); those are not remembered.
    """
    arguments = (name, learning_rate, steps, momentum, weight_decay)
    traced = any(isinstance(value, jax.Array) for value in arguments)
    return _optimiser(*arguments) if traced else _remembered(*arguments)


def _optimiser(
    name: str, learning_rate: float, steps: int, momentum: float, weight_decay: float
) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(learning_rate, steps) if steps else learning_rate
    if name == "adam":
        return optax.adam(rate)
    if name == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay)
    if name == "sgd":
        return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum, nesterov=momentum > 0))
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
    teacher: Classifier | Callable[[Array], Any] | None = None,
    rows: Array | None = None,
) -> Method:
    """Stochastic training of a classifier, as a method.

    Every step draws `batch_size` rows with replacement, augments them, and descends the mean of `loss`. The network is
    in training mode, so batch normalisation uses the batch and updates its running statistics.

    Args:
      classifier: gives module and preprocessing; its variables are not used (`init` draws fresh ones). Use
        `trained` to put the result back into it.
      images: (N, H, W, C) on the device, uint8 or float in the box.
      targets: pytree with leading axis N (labels, soft targets, a teacher's logits computed beforehand), or None with
        a `teacher`.
      loss: of the student's logits and the batch's targets.
      optimizer: see `optimiser`.
      batch_size: B.
      augment: applied to the batch, before the teacher too.
      teacher: answers the augmented batch; frozen. A pytree (`Classifier` or `Partial`).
      rows: () int32, how many rows of `images` to draw from; all by default.

    Returns:
      A `Method` over `Training` with metric ``loss``.
    """
    if (targets is None) == (teacher is None):
        raise InputError("give either targets or a teacher that answers every batch, not both and not neither")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    if teacher is not None and not isinstance(teacher, Classifier | Partial):
        teacher = Partial(teacher)
    fixed = Static((classifier.module, classifier.preprocessing, classifier.input_shape, optimizer, batch_size))
    return method(_init, _step, fixed, images, targets, loss, augment, teacher, rows)


def _init(fixed: Static, images, targets, loss, augment, teacher, rows, key: Key) -> Training:
    module, preprocessing, shape, optimizer, _ = fixed.value
    variables = Classifier.create(module, key, shape, preprocessing).variables
    return Training(variables, optimizer.init(variables["params"]))


def _step(
    fixed: Static,
    images: Array,
    targets: Any,
    loss: Loss,
    augment: Augmentation | None,
    teacher: Callable | None,
    rows: Array | None,
    key: Key,
    state: Training,
) -> tuple[Training, Metrics]:
    module, preprocessing, _, optimizer, batch_size = fixed.value
    row_key, augment_key, dropout_key = jax.random.split(key, 3)
    chosen = jax.random.randint(row_key, (batch_size,), 0, images.shape[0] if rows is None else rows)
    batch = constrain_samples(as_float(images[chosen]))
    if augment is not None:
        batch = augment(augment_key, batch)
    wanted = jax.tree.map(lambda leaf: leaf[chosen], targets) if teacher is None else teacher(batch)
    wanted = jax.lax.stop_gradient(wanted)
    inputs = preprocessing(batch)

    def mean_loss(params: PyTree) -> tuple[Array, PyTree]:
        logits, updated = module.apply(
            {**state.variables, "params": params},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        return jnp.mean(loss(logits.astype(jnp.float32), wanted)), updated

    (value, updated), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.variables["params"])
    updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, state.variables["params"])
    params = optax.apply_updates(state.variables["params"], updates)
    return Training({**state.variables, **updated, "params": params}, optimizer_state), {"loss": value}


def on_images(method_: Method, images: Array, rows: Array) -> Method:
    """The same training (one with a `teacher`), drawing from the first `rows` of other images: a pool that grows."""
    fixed, _, targets, loss, augment, teacher, _ = method_.step.args  # type: ignore[attr-defined]
    if teacher is None:
        raise InputError(
            "only a training with a teacher can move to other images: a table of targets belongs to its own"
        )
    return method(_init, _step, fixed, images, targets, loss, augment, teacher, rows)


def trained(classifier: Classifier, state: Training) -> Classifier:
    """The classifier with the variables of a training state (stacked, if the state is)."""
    return dataclasses.replace(classifier, variables=state.variables)


__all__ = ["Loss", "Training", "on_images", "optimiser", "trained", "training"]
