"""Independent clean models, many in one program: what innocent suspects answer. Knows nothing of
any mark.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.loop import run
from dfke_jax.core.method import Method, Static
from dfke_jax.core.population import Strategy, population
from dfke_jax.core.types import Array, Augmentation, Key
from dfke_jax.nn.classifier import Classifier, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import optimiser, trained, training

Sharing = Literal["disjoint", "bootstrap"]


def shares(key: Key, rows: int, models: int, sharing: Sharing, size: int | None = None) -> Array:
    """(M, n) int32: which rows of a data set each of M models is trained on.

    Args:
      key: of the draws.
      rows: N, of the data set. models: M.
      sharing: ``disjoint``: no row belongs to two models, n = ⌊N/M⌋ by default. ``bootstrap``: n
        rows with replacement for each, n = N by default.
      size: n.

    Raises:
      UnknownNameError: for another way of sharing.
      InputError: no models, or more rows than there are for disjoint shares.
    """
    if models < 1 or rows < 1:
        raise InputError(f"{models} models on {rows} rows; there is at least one of each")
    if sharing == "disjoint":
        size = rows // models if size is None else size
        if not 1 <= size * models <= rows or size < 1:
            raise InputError(
                f"{models} disjoint shares of {size} rows from {rows}; take fewer models, smaller "
                "shares or sharing='bootstrap'"
            )
        return (
            jax.random.permutation(key, rows)[: models * size]
            .reshape(models, size)
            .astype(jnp.int32)
        )
    if sharing == "bootstrap":
        size = rows if size is None else size
        if size < 1:
            raise InputError(f"a share has at least one row, not {size}")
        return jax.random.randint(key, (models, size), 0, rows, jnp.int32)
    raise UnknownNameError("way of sharing", sharing, ("disjoint", "bootstrap"))


def null_training(
    classifier: Classifier,
    images: Array,
    labels: Array,
    table: Array,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int = 64,
    augment: Augmentation | None = None,
    strategy: Strategy = "auto",
    mesh: Mesh | None = None,
) -> Method:
    """Cross-entropy training of M models on their shares of one array, as one method over a stacked
    state.

    Args:
      classifier: the network; every model draws variables of its own.
      images: (N, H, W, C). labels: (N,).
      table: (M, n), from `shares`.
      optimizer, batch_size, augment: of every model; see `nn.training.training`.
      strategy, mesh: see `core.population`.

    Raises:
      InputError: labels that do not fit, or a table that is none.
    """
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    if jnp.ndim(table) != 2:
        raise InputError(f"a table of shares is (M, n), got shape {jnp.shape(table)}")
    fixed = Static((optimizer, batch_size))
    factory = Partial(_member, fixed, classifier, images, jnp.asarray(labels, jnp.int32), augment)
    return population(factory, table, strategy=strategy, mesh=mesh)


def _member(
    fixed: Static,
    classifier: Classifier,
    images: Array,
    labels: Array,
    augment: Augmentation | None,
    rows: Array,
) -> Method:
    optimizer, batch_size = fixed.value
    return training(
        classifier,
        images,
        labels,
        loss=Partial(cross_entropy),
        optimizer=optimizer,
        batch_size=batch_size,
        augment=augment,
        rows=rows,
    )


def null_population(
    classifier: Classifier,
    images: Array,
    labels: Array,
    key: Key,
    *,
    models: int = 100,
    sharing: Sharing = "bootstrap",
    size: int | None = None,
    steps: int = 1000,
    batch_size: int = 64,
    optimizer: optax.GradientTransformation | None = None,
    augment: Augmentation | None = None,
    strategy: Strategy = "auto",
    mesh: Mesh | None = None,
    progress: str | None = None,
) -> Classifier:
    """Trains M clean models of a task in one program.

    Args:
      classifier: the network.
      images: (N, H, W, C) on the device. labels: (N,). Data of the task, best such as innocent
        owners have.
      key: of shares, initial variables and batches.
      models: M. An empirical p-value cannot fall below 1/(M + 1).
      sharing, size: see `shares`. Disjoint shares make independent models; bootstrapped ones see
        enough data to be good.
      steps, batch_size, augment: of every model.
      optimizer: Adam at 2e-3 along a cosine by default.
      strategy, mesh: see `core.population`.
      progress: title of a progress bar.

    Returns:
      A stacked `Classifier`, leading axis M.

    Raises:
      InputError: for shares that cannot be had or labels that do not fit.
    """
    share_key, run_key = jax.random.split(key)
    table = shares(share_key, len(images), models, sharing, size)
    method = null_training(
        classifier,
        images,
        labels,
        table,
        optimizer=optimizer or optimiser("adam", 2e-3, steps),
        batch_size=batch_size,
        augment=augment,
        strategy=strategy,
        mesh=mesh,
    )
    state = run(method, jax.random.split(run_key, models), steps, progress=progress).state
    return trained(classifier, state)


def models_of(stack: Classifier) -> int:
    """M of a stacked classifier.

    Raises:
      InputError: for a single one.
    """
    if stack.head_kernel.ndim != 3:
        raise InputError(
            "a stack of classifiers has variables with a leading axis M; got a single one"
        )
    return stack.head_kernel.shape[0]


def stacked_answers(stack: Classifier, images: Any) -> Array:
    """Labels (M, N) int32 that each of M classifiers gives to images (N, H, W, C).

    Raises:
      InputError: for a single classifier.
    """
    models_of(stack)
    return _answers(stack, jnp.asarray(images))


@jax.jit
def _answers(stack: Classifier, images: Array) -> Array:
    # one model after another: a convolution with kernels of its own for every row has no fast form
    # on CPU
    return jax.lax.map(lambda one: jnp.argmax(one.logits(images), -1).astype(jnp.int32), stack)


__all__ = ["null_population", "null_training", "shares", "stacked_answers"]
