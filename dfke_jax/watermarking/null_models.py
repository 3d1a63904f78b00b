"""Independent clean models, many in one program: what innocent suspects answer. Knows nothing of
any mark.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dfke_jax.core.errors import InputError
from dfke_jax.core.loop import run
from dfke_jax.core.population import Strategy
from dfke_jax.core.types import Array, Augmentation, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.nn.many import Sharing, independent_training, shares
from dfke_jax.nn.training import optimiser, trained


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
      sharing, size: see `nn.many.shares`. Disjoint shares make independent models; bootstrapped
        ones see enough data to be good.
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
    method = independent_training(
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


__all__ = ["null_population", "stacked_answers"]
