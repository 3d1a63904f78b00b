"""Priors on synthesised images: smoothness, energy, and statistics stored in the network."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from dfke_jax.core.errors import UnknownNameError
from dfke_jax.core.types import Array
from dfke_jax.nn.observation import Moments


def total_variation(images: Array) -> Array:
    """Anisotropic total variation: Σ |x[i+1, j] − x[i, j]| + |x[i, j+1] − x[i, j]|, per image.

    (B, H, W, C) -> (B,). Equal neighbours have gradient 0, so that a flat image stays flat.
    """
    rows = _absolute(images[:, 1:] - images[:, :-1]).sum((1, 2, 3))
    columns = _absolute(images[:, :, 1:] - images[:, :, :-1]).sum((1, 2, 3))
    return rows + columns


def total_variation_l2(images: Array) -> Array:
    """DeepInversion's form: Σ over the directions ↓, →, ↘, ↙ of ‖shifted difference‖₂, over the
    *whole batch*.

    (B, H, W, C) -> scalar. Source: released DeepInversion code. The norm is smoothed by 1e-12 under
    the root, so that a flat batch has a gradient.
    """
    differences = (
        images[:, 1:] - images[:, :-1],
        images[:, :, 1:] - images[:, :, :-1],
        images[:, 1:, 1:] - images[:, :-1, :-1],
        images[:, 1:, :-1] - images[:, :-1, 1:],
    )
    return sum((_norm(difference) for difference in differences), jnp.zeros(()))


def l2(images: Array) -> Array:
    """Σ x² per image, (B, H, W, C) -> (B,)."""
    return jnp.square(images).sum((1, 2, 3))


def l2_norm(images: Array) -> Array:
    """‖x‖₂ over the whole batch, the released DeepInversion form; (B, H, W, C) -> scalar."""
    return _norm(images)


def gaussian_smoothness(images: Array, sigma: float | Array = 1.0) -> Array:
    """Σ (x − g * x)² per image, (B, H, W, C) -> (B,): 0 where blurring changes nothing.

    g is a Gaussian of width `sigma` pixels; at the border the weights inside the image are scaled
    to sum to one.

    Source: the smoothness term of Haroush et al., The Knowledge Within, CVPR 2020.
    """

    def weights(size: int) -> Array:  # (size, size), rows sum to one
        apart = jnp.square(jnp.arange(size)[:, None] - jnp.arange(size)[None]).astype(jnp.float32)
        return jax.nn.softmax(-apart / (2 * sigma**2), -1)

    height, width = images.shape[1:3]
    blurred = jnp.einsum("ij,bjwc,vw->bivc", weights(height), images, weights(width))
    return jnp.square(images - blurred).sum((1, 2, 3))


StatisticsForm = Literal["squared", "norm", "kl"]


def normalisation_statistics(
    moments: Sequence[Moments], form: StatisticsForm = "norm", first: float = 1.0
) -> Array:
    """Distance of the batch's normalisation-layer input statistics from the stored ones, summed
    over layers.

    With batch mean μ̂ and biased variance σ̂², stored mean μ and variance σ²:

    - ``squared``: ‖μ̂ − μ‖² + ‖σ̂² − σ²‖² (DeepInversion's formula as it is usually taught)
    - ``norm``: ‖μ̂ − μ‖₂ + ‖σ̂² − σ²‖₂ (the released DeepInversion code)
    - ``kl``: Σ_channels log(σ/σ̂) + (σ̂² + (μ̂ − μ)²) / 2σ² − ½ = KL(N(μ̂, σ̂²) ‖ N(μ, σ²))
      (Haroush et al. 2020)

    Args:
      moments: from `Classifier.observe`; the first is the layer that comes first by path, which in
        every registered network is the first that images pass.
      form: which of the three.
      first: weight of the first layer (the ImageNet recipe of DeepInversion uses 10).

    Returns:
      A scalar, zero where the statistics agree. Norms are smoothed by 1e-12 under the root.
    """
    if form not in ("squared", "norm", "kl"):
        raise UnknownNameError("form of the statistics prior", form, ("squared", "norm", "kl"))

    def layer(m: Moments) -> Array:
        mean, var = m.mean - m.running_mean, m.var - m.running_var
        if form == "squared":
            return jnp.square(mean).sum() + jnp.square(var).sum()
        if form == "norm":
            return _norm(mean) + _norm(var)
        eps = 1e-8
        ratio = (m.var + eps) / (m.running_var + eps)
        return 0.5 * (ratio - 1 - jnp.log(ratio) + jnp.square(mean) / (m.running_var + eps)).sum()

    weights = [first] + [1.0] * (len(moments) - 1)
    return sum(
        (weight * layer(m) for weight, m in zip(weights, moments, strict=True)), jnp.zeros(())
    )


def _absolute(x: Array) -> Array:
    return x * jax.lax.stop_gradient(jnp.sign(x))  # the derivative of jnp.abs at 0 is 1


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.square(x).sum() + 1e-12)


__all__ = [
    "StatisticsForm",
    "gaussian_smoothness",
    "l2",
    "l2_norm",
    "normalisation_statistics",
    "total_variation",
    "total_variation_l2",
]
