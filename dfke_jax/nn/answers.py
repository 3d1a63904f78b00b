"""Answers that are not one label an image: heads, parts and places.

A network's answers are a pytree whose leaves, the *heads*, are logits (B, ..., K): one array (B, K)
of a classifier, a dictionary of a head per task, a tuple of a head per teacher, (B, H, W, K) where
every place is classified. Every head is a question of its own, with classes of its own.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from dfke_jax.core.errors import InputError
from dfke_jax.core.guard import LARGEST_CLASS, LARGEST_SHARE
from dfke_jax.core.types import Array, Metrics, PyTree

MOST_SHARES = 32
"""Up to so many classes `class_metrics` has a metric of each, which is kept for every step."""


def heads(answers: PyTree) -> dict[str, Array]:
    """The heads by path (``colour``, ``0``); by an empty name where answers are one array."""
    leaves = jax.tree_util.tree_leaves_with_path(answers)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def same_answers(first: PyTree, second: PyTree) -> bool:
    """Whether two networks answer the same questions: the same heads, of equal shapes."""
    shapes = [
        [(name, leaf.shape) for name, leaf in heads(answers).items()] for answers in (first, second)
    ]
    return shapes[0] == shapes[1] and jax.tree.structure(first) == jax.tree.structure(second)


def check_one_label(answers: PyTree, what: str) -> None:
    """Raises `InputError` unless answers are one array (B, K), which `what` is made for."""
    found = heads(answers)
    if list(found) != [""] or found[""].ndim != 2:
        shapes = ", ".join(f"{name or 'answers'} {leaf.shape}" for name, leaf in found.items())
        raise InputError(
            f"{what} is made for one label an image, logits (B, K); this teacher answers {shapes}"
        )


def each_head(loss: Partial) -> Partial:
    """A loss of two answers, summed over heads and averaged over the places of a head.

    Args:
      loss: (logits (R, K), logits (R, K)) -> (R,), a `Partial`.

    Returns:
      (answers, answers) -> (B,), where every leaf (B, ..., K) is taken as B·(...) rows.
    """
    return Partial(_each_head, loss)


def class_metrics(answers: PyTree) -> Metrics:
    """How a batch's answers are spread over the classes, head by head.

    Args:
      answers: leaves (B, ..., K), K >= 2. Every place of an image counts like an image.

    Returns:
      Float32 scalars, of one head without, of several with ``/HEAD`` behind the name:
      ``class_entropy``: −Σ p̄_k ln p̄_k / ln K of the mean answer p̄; ``histogram_entropy``: the
      same of the histogram of answered classes; ``largest_class`` and ``largest_share``: the class answered most often, and
      how often, in [0, 1]; ``class_share/k``: of every class, where there are at most `MOST_SHARES`
      of them.

    Raises:
      InputError: for a head without classes.
    """
    metrics: Metrics = {}
    for name, logits in heads(answers).items():
        behind = f"/{name}" if name else ""
        if logits.ndim < 2 or logits.shape[-1] < 2:
            raise InputError(
                f"answers must be (B, ..., K) with K >= 2, got shape {logits.shape}{behind}"
            )
        classes = logits.shape[-1]
        rows = logits.reshape(-1, classes).astype(jnp.float32)
        counts = jnp.zeros(classes, jnp.float32).at[jnp.argmax(rows, -1)].add(1.0)
        shares = counts / rows.shape[0]
        metrics[f"class_entropy{behind}"] = _entropy(jnp.mean(jax.nn.softmax(rows), 0))
        metrics[f"histogram_entropy{behind}"] = _entropy(shares)
        metrics[LARGEST_CLASS + behind] = jnp.argmax(shares).astype(jnp.float32)
        metrics[LARGEST_SHARE + behind] = jnp.max(shares)
        if classes <= MOST_SHARES:
            metrics |= {f"class_share{behind}/{k}": shares[k] for k in range(classes)}
    return metrics


def _entropy(shares: Array) -> Array:
    return -jnp.sum(jax.scipy.special.xlogy(shares, shares)) / jnp.log(shares.shape[0])


def _each_head(loss: Partial, first: PyTree, second: PyTree) -> Array:
    def of(first: Array, second: Array) -> Array:
        rows = loss(*(leaf.reshape(-1, leaf.shape[-1]) for leaf in (first, second)))
        return jnp.mean(rows.reshape(first.shape[0], -1), -1)

    return sum(jax.tree.leaves(jax.tree.map(of, first, second)), jnp.zeros(()))


__all__ = ["MOST_SHARES", "check_one_label", "class_metrics", "each_head", "heads", "same_answers"]
