"""In which floating-point format networks compute.

Parameters, optimiser states, normalisation statistics, losses and probabilities are float32
whatever is chosen here; what changes is the format of activations and of the copies of the
parameters that layers multiply with.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from dfke_jax.core.errors import InputError
from dfke_jax.core.types import Array, PyTree

Precision = Literal["float32", "bfloat16"]
_PRECISIONS = ("float32", "bfloat16")
_precision = jax.make_user_context("float32")


def compute_precision(name: Precision) -> AbstractContextManager:
    """Context in which every network of the package computes in one format; compiled programs know
    of it.

    ``bfloat16`` halves the memory traffic of activations and takes the matrix units of GPUs and
    TPUs; on CPUs it is slower than ``float32``, the default. The last layer (``head``) stays in
    float32, so that logits keep their precision. Differences of answers
    (`dfke_jax.synthesis.precise`) are evaluated in float32 inside this context too.

    Raises:
      InputError: for another name.
    """
    if name not in _PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(_PRECISIONS)}, not {name!r}")
    return _precision(name)


def apply(module: nn.Module, variables: Mapping[str, PyTree], inputs: Array, **options: Any) -> Any:
    """``module.apply(variables, inputs, **options)`` in the format of the context.

    Args:
      module, variables, options: as for `flax.linen.Module.apply`.
      inputs: float32.

    Returns:
      What the module returns; its answers, one array or several heads, in float32.
    """
    if _precision.value == "float32":
        return module.apply(variables, inputs, **options)
    params = jax.tree.map_with_path(_lowered, variables["params"])
    returned = module.apply({**variables, "params": params}, inputs.astype(jnp.bfloat16), **options)
    if options.get("mutable"):  # answers, and collections
        answers, *beside = returned  # type: ignore[misc]
        return in_float32(answers), *beside
    return in_float32(returned)


def in_float32(answers: PyTree) -> PyTree:
    """A network's answers, one array or several heads, in float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), answers)


def _lowered(path: tuple, leaf: Array) -> Array:
    """Parameters in bfloat16, but those of a last layer, wherever in the network it stands."""
    return (
        leaf
        if any(getattr(part, "key", None) == "head" for part in path)
        else leaf.astype(jnp.bfloat16)
    )


__all__ = ["Precision", "apply", "compute_precision", "in_float32"]
