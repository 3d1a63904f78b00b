"""What synthesised samples should be answered with: labels, and softmax targets drawn from class
similarity.
"""

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, Key


def balanced_labels(rows: Array, num_classes: int) -> Array:
    """Row numbers (B,) -> labels (B,): every K consecutive rows hold every class once."""
    return rows % num_classes


def class_similarity(head_kernel: Array) -> Array:
    """Cosine similarity of the last layer's weight vectors: C(i, j) = wᵢᵀwⱼ / (‖wᵢ‖‖wⱼ‖), (D, K) ->
    (K, K).

    A class without weights (a column of zeros) has no direction: its similarities are 0, that with
    itself too.
    Source: Nayak et al., ICML 2019.
    """
    length = jnp.linalg.norm(head_kernel, axis=0, keepdims=True)
    unit = head_kernel / jnp.where(length > 0, length, 1.0)
    return unit.T @ unit


def concentrations(similarity: Array, floor: float = 1e-4) -> Array:
    """Dirichlet concentrations of every class: its row of the similarity matrix, min-max
    normalised, plus `floor`.

    (K, K) -> (K, K), row k with values in [floor, 1 + floor]. Source: Nayak et al., ICML 2019; the
    floor is that of the released code, without which the least similar class has none.
    """
    least = similarity.min(1, keepdims=True)
    most = similarity.max(1, keepdims=True)
    return (similarity - least) / jnp.maximum(most - least, 1e-12) + floor


def dirichlet_targets(
    key: Key, concentration: Array, labels: Array, scale: Array | float = 1.0
) -> Array:
    """Softmax targets y ~ Dir(β · α^k), one per label.

    Args:
      key: PRNG key.
      concentration: (K, K) from `concentrations`; row k is α^k.
      labels: (B,) classes k.
      scale: β, scalar or (B,). Small values give nearly one-hot targets.

    Returns:
      (B, K), rows sum to one. Drawn in log space, so that concentrations down to 1e-5 neither
      underflow nor give NaN.
    """
    scale = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), labels.shape)
    alpha = concentration[labels] * scale[:, None]
    return jax.nn.softmax(jax.random.loggamma(key, alpha), axis=-1)


def per_row(values: tuple[float, ...], rows: Array, group: int) -> Array:
    """Hands out `values` in turn to consecutive groups of rows: row r gets
    ``values[(r // group) % len(values)]``.
    """
    if not values:
        raise InputError("at least one value is needed")
    return jnp.asarray(values, jnp.float32)[(rows // group) % len(values)]


__all__ = ["balanced_labels", "class_similarity", "concentrations", "dirichlet_targets", "per_row"]
