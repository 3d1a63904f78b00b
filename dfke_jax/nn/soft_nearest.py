"""The soft nearest neighbour loss: how entangled the classes of a batch are in a representation."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array

Distance = Literal["euclidean", "cosine"]
Form = Literal["paper", "released"]
DISTANCES = ("euclidean", "cosine")
FORMS = ("paper", "released")

_EPSILON = 1e-5  # of the released form
_TINY = 1e-12  # rows of a smaller squared norm have no direction


def soft_nearest_neighbour_loss(
    features: Array,
    labels: Array,
    temperature: float | Array,
    *,
    distance: Distance = "euclidean",
    form: Form = "paper",
) -> Array:
    """The soft nearest neighbour loss of a batch: large where the classes lie among one another.

    L = −(1/n) Σ_i log [ Σ_{j≠i, y_j=y_i} exp(−d_ij/τ) / Σ_{k≠i} exp(−d_ik/τ) ]

    over the n rows that share their label with another row; of the others the formula is infinite,
    and they are left out. A batch without any pair of equal labels has loss 0. Computed as
    differences of log-sum-exps, so that distances of any size are sound; memory is that of the (B,
    B) matrix and the features. Differentiable in reverse mode only.

    Args:
      features: (B, ...), B ≥ 2, flattened.
      labels: (B,) integers or booleans; in a watermark, whether a row is a trigger.
      temperature: τ > 0. In the released form τ̂, and τ = 100/τ̂.
      distance: ``euclidean``, the squared ‖x_i − x_j‖²; ``cosine``, 1 − ⟨x_i, x_j⟩/(‖x_i‖·‖x_j‖),
        where a row of zeros (all its units are dead) has distance 1 from every row, and no
        gradient.
      form: ``paper``, or ``released``: −(1/B) Σ_i log(ε + Σ_{j: y_j=y_i} e_ij/(ε + Σ_k e_ik)) with
        ε = 10⁻⁵ and e = clip(exp(−d/τ) − I, 0, 1); rows without a partner count −log ε there, and
        so do rows that are far from all others, where this form has no gradient.

    Returns:
      A scalar, at least 0 (in the released form up to rounding and ε).

    Raises:
      InputError: for shapes that do not fit, or a temperature (a Python number) that is not
        positive.

    Source: Frosst, Papernot and Hinton, Analyzing and Improving Representations with the Soft
    Nearest Neighbor Loss, 2019, equation 1; Jia, Choquette-Choo, Chandrasekaran and Papernot,
    Entangled Watermarks, 2021, equation 1.
    Deviation: the mean is over rows with a partner.
    """
    if features.ndim < 2 or labels.shape != features.shape[:1] or features.shape[0] < 2:
        raise InputError(
            f"features must be (B, ...) with B ≥ 2 and labels (B,), got {features.shape} and "
            f"{labels.shape}"
        )
    if form not in FORMS:
        raise UnknownNameError("form of the soft nearest neighbour loss", form, FORMS)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise InputError(f"temperature must be positive, got {temperature}")
    distances = pairwise_distances(features, distance)
    same = labels[:, None] == labels[None]
    other = ~jnp.eye(features.shape[0], dtype=bool)
    if form == "released":
        return _released(distances, same, other, 100 / jnp.asarray(temperature, jnp.float32))
    closeness = jnp.where(other, -distances / temperature, -jnp.inf)
    # The nearest row's share drops out; without it the difference of two large numbers would be
    # left.
    closeness = closeness - jax.lax.stop_gradient(closeness.max(1, keepdims=True))
    paired = jnp.any(same & other, 1)
    # Rows without a partner would be −∞: they look at all others instead, and are then left out.
    among = jax.nn.logsumexp(jnp.where(same | ~paired[:, None], closeness, -jnp.inf), 1)
    rows = jax.nn.logsumexp(closeness, 1) - among
    return jnp.sum(jnp.where(paired, rows, 0.0)) / jnp.maximum(jnp.sum(paired), 1)


def neighbour_mixing(features: Array, labels: Array, neighbours: int = 10) -> Array:
    """How entangled two classes are, without a temperature: the share of other labels among the
    nearest rows.

    (1/(B·k)) Σ_i #{j among the k rows nearest to i, in squared Euclidean distance: y_j ≠ y_i}: 0
    where the classes lie apart; B/(2(B − 1)), about a half, where two of equal size are one cloud;
    more where rows seek the other class.

    Args:
      features: (B, ...), flattened. labels: (B,). neighbours: k, from 1 to B − 1.

    Raises:
      InputError: for another number of neighbours.
    """
    rows = features.shape[0]
    if not 1 <= neighbours < rows:
        raise InputError(f"neighbours must lie in [1, {rows - 1}], got {neighbours}")
    distances = jnp.where(jnp.eye(rows, dtype=bool), jnp.inf, pairwise_distances(features))
    _, nearest = jax.lax.top_k(-distances, neighbours)
    return jnp.mean(labels[nearest] != labels[:, None])


def pairwise_distances(features: Array, distance: Distance = "euclidean") -> Array:
    """(B, ...) -> (B, B), from one product of the features with themselves; see
    `soft_nearest_neighbour_loss`.

    Raises:
      UnknownNameError: for another distance.
    """
    rows = features.reshape(features.shape[0], -1).astype(jnp.float32)
    if distance == "cosine":
        unit = unit_rows(rows)
        return jnp.clip(1 - _gram(unit), 0, 2)
    if distance != "euclidean":
        raise UnknownNameError("distance", distance, DISTANCES)
    # The mean drops out of differences; without it less is lost where the two norms nearly cancel
    # the product.
    rows = rows - rows.mean(0, keepdims=True)
    squared = jnp.sum(jnp.square(rows), 1)
    return jnp.maximum(squared[:, None] + squared[None] - 2 * _gram(rows), 0)


@jax.custom_vjp
def _gram(rows: Array) -> Array:
    return jnp.matmul(rows, rows.T, precision="highest")


def _gram_backward(rows: Array, cotangent: Array) -> tuple[Array]:
    # G·X + Gᵀ·X as one product instead of two
    return (jnp.matmul(cotangent + cotangent.T, rows, precision="highest"),)


_gram.defvjp(lambda rows: (_gram(rows), rows), _gram_backward)


def unit_rows(rows: Array) -> Array:
    """(B, D) -> its rows at length 1; a row of zeros stays one and has no gradient."""
    squared = jnp.sum(jnp.square(rows), 1, keepdims=True)
    present = squared > _TINY
    return jnp.where(present, rows * jax.lax.rsqrt(jnp.where(present, squared, 1.0)), 0.0)


def _released(distances: Array, same: Array, other: Array, temperature: Any) -> Array:
    near = jnp.clip(jnp.exp(-distances / temperature) - (1.0 - other), 0, 1)
    shares = near / (_EPSILON + jnp.sum(near, 1, keepdims=True))
    return -jnp.mean(jnp.log(_EPSILON + jnp.sum(shares * same, 1)))


__all__ = [
    "DISTANCES",
    "FORMS",
    "Distance",
    "Form",
    "neighbour_mixing",
    "pairwise_distances",
    "soft_nearest_neighbour_loss",
    "unit_rows",
]
