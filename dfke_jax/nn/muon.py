"""Muon: descent along the orthogonal factor of the momentum, for the kernels of convolutions."""

import jax
import jax.numpy as jnp
import optax

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, PyTree

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic x ↦ a·x + b·x³ + c·x⁵, steep at 0; singular values end near 1, not at it."""


def newton_schulz(matrix: Array, steps: int = 3, epsilon: float = 1e-7) -> Array:
    """Pushes all singular values of a matrix (m, n) towards one, and leaves its singular vectors.

    X ← X / (‖X‖_F + epsilon), then `steps` times X ← a·X + (b·A + c·A²)·X with A = X·Xᵀ.

    Source: Jordan et al., Muon: an Optimizer for Hidden Layers in Neural Networks, 2024.
    Deviation: in the precision that is given, not in bfloat16.
    """
    if matrix.ndim != 2:
        raise InputError(f"a matrix is needed, got shape {matrix.shape}")
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (jnp.linalg.norm(x) + epsilon)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.T


def muon(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.6, steps: int = 3
) -> optax.GradientTransformation:
    """Muon on kernels (kh, kw, C, F), each taken as a matrix (kh·kw·C, F).

    m ← μ·m + g; W ← W·√F/‖W‖_F − η·newton_schulz(g + μ·m): every kernel is brought to the norm √F
    at each step.

    Source: as `newton_schulz`; the norm is that of the released CIFAR-10 speed run. Optax's own
    ``contrib.muon`` corrects its momentum's bias and leaves the norm.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(_orthogonal(steps), updates)),
        optax.scale_by_learning_rate(learning_rate),
        optax.stateless(_renormalised),
    )


def _orthogonal(steps: int):
    return lambda leaf: newton_schulz(leaf.reshape(-1, leaf.shape[-1]), steps).reshape(leaf.shape)


def _renormalised(updates: PyTree, params: PyTree) -> PyTree:
    def add(update: Array, kernel: Array) -> Array:
        return update + kernel * (kernel.shape[-1] ** 0.5 / jnp.linalg.norm(kernel) - 1)

    return jax.tree.map(add, updates, params)


__all__ = ["COEFFICIENTS", "muon", "newton_schulz"]
