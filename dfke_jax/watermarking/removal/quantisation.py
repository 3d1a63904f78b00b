"""Removal by coarser weights: fewer bits, or half-precision floats."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dfke_jax.core.errors import InputError, UnknownNameError
from dfke_jax.core.types import Array, Key
from dfke_jax.nn.classifier import Classifier
from dfke_jax.watermarking.removal.common import Removed, check_attacker

_CASTS = {"float16": jnp.float16, "bfloat16": jnp.bfloat16}


def quantised(weights: Array, bits: int, per_channel: bool = True) -> Array:
    """Uniform symmetric quantisation: s · round(w/s), s = max|w| / (2^(bits−1) − 1).

    The error of every weight is at most s/2. Weights that are all zero stay so.

    Args:
      weights: (..., F) float.
      bits: 2 to 16.
      per_channel: one s for each of the last axis's F channels; otherwise one for all.

    Raises:
      InputError: for another number of bits.
    """
    if not 2 <= bits <= 16 or int(bits) != bits:
        raise InputError(f"bits must be a whole number from 2 to 16, got {bits}")
    axes = tuple(range(weights.ndim - 1)) if per_channel else None
    scale = jnp.max(jnp.abs(weights), axes, keepdims=True) / (2 ** (int(bits) - 1) - 1)
    return jnp.where(scale > 0, scale * jnp.round(weights / jnp.where(scale > 0, scale, 1.0)), 0.0)


def quantisation(
    key: Key,
    marked: Classifier,
    images: Array,
    labels: Array,
    *,
    bits: int = 4,
    per_channel: bool = True,
) -> Removed:
    """Quantises every kernel (see `quantised`); biases and normalisation stay. Key, images and
    labels are not needed.
    """
    check_attacker(marked, images, None)

    def coarse(path: tuple, leaf: Array) -> Array:
        return quantised(leaf, bits, per_channel) if path[-1].key == "kernel" else leaf

    params = jax.tree_util.tree_map_with_path(coarse, marked.variables["params"])
    classifier = dataclasses.replace(marked, variables={**marked.variables, "params": params})
    numbers = {"bits": bits, "per_channel": per_channel}
    return Removed(classifier, classifier, "quantisation", f"weights of {bits} bits", numbers)


def half_precision(
    key: Key, marked: Classifier, images: Array, labels: Array, *, dtype: str = "bfloat16"
) -> Removed:
    """Rounds every parameter to `dtype`; arithmetic stays in float32. Key, images and labels are
    not needed.

    Args:
      dtype: ``bfloat16`` or ``float16``.

    Raises:
      UnknownNameError: for another type.
      InputError: for a parameter beyond the range of float16.
    """
    if dtype not in _CASTS:
        raise UnknownNameError("half-precision type", dtype, _CASTS)
    check_attacker(marked, images, None)
    params = jax.tree.map(
        lambda leaf: leaf.astype(_CASTS[dtype]).astype(leaf.dtype), marked.variables["params"]
    )
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise InputError(f"the network has parameters beyond the range of {dtype}; use bfloat16")
    classifier = dataclasses.replace(marked, variables={**marked.variables, "params": params})
    return Removed(
        classifier, classifier, "half_precision", f"parameters in {dtype}", {"dtype": dtype}
    )


__all__ = ["half_precision", "quantisation", "quantised"]
