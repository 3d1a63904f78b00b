"""Independent models: many trainings of one network in one program, each on its own share of the
data.

They are what innocent suspects answer: null models of watermarks, references and independents of
dataset inference.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.method import Method, Static
from dfke_jax.core.population import Strategy, population
from dfke_jax.core.types import Array, Augmentation, Key, PyTree
from dfke_jax.nn.classifier import Classifier, check_labels
from dfke_jax.nn.losses import cross_entropy
from dfke_jax.nn.training import trained, training

Sharing = Literal["disjoint", "bootstrap"]
SPARE = 2
"""`separate_shares` need so many times the rows of one. With fewer, two models share more than half
of theirs, and a suspect that shares none stands out among them though it is innocent."""


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


def separate_shares(rows: int, models: int, size: int, seed: int) -> np.ndarray:
    """(M, n) rows of a data set, no row twice in one share: disjoint where they suffice, else drawn
    anew for each model.

    Two shares that are drawn anew have n / N of their rows in common on average, at most half.

    Args:
      rows: N. models: M. size: n. seed: of the draws, which are made on the host.

    Raises:
      InputError: shares larger than half of the rows.
    """
    if SPARE * size > rows:
        raise InputError(
            f"independent models are trained on {size} images each, as many as the victim, and "
            f"{rows} are left for them: any two would share {min(1.0, size / rows):.0%} of their "
            f"images; at least {SPARE * size} are needed, and {models * size} for models that "
            "share none"
        )
    rng = np.random.default_rng(seed)
    if models * size <= rows:
        return rng.permutation(rows)[: models * size].reshape(models, size)
    return np.stack([rng.permutation(rows)[:size] for _ in range(models)])


def independent_training(
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
      table: (M, n), from `shares` or `separate_shares`.
      optimizer, batch_size, augment: of every model; see `nn.training.training`.
      strategy, mesh: see `core.population`.

    Returns:
      A `Method` whose state is a stack of M `Training`; run it with M keys. `trained` makes a
      stacked `Classifier` of it, `member` one model.

    Raises:
      InputError: labels that do not fit, or a table that is none.
    """
    check_labels(labels, len(images), classifier.num_classes, every_class=False)
    if jnp.ndim(table) != 2:
        raise InputError(f"a table of shares is (M, n), got shape {jnp.shape(table)}")
    fixed = Static((optimizer, batch_size))
    factory = Partial(_one, fixed, classifier, images, jnp.asarray(labels, jnp.int32), augment)
    return population(factory, jnp.asarray(table), strategy=strategy, mesh=mesh)


def _one(
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


def member(classifier: Classifier, state: PyTree, index: int) -> Classifier:
    """One model out of a stack of M `Training` (`independent_training`, or any population of
    trainings).
    """
    return trained(classifier, jax.tree.map(lambda leaf: leaf[index], state))


__all__ = ["SPARE", "Sharing", "independent_training", "member", "separate_shares", "shares"]
