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
      What the module returns, and as float32 where it is an array.
    """
    if _precision.value == "float32":
        return module.apply(variables, inputs, **options)
    low = jnp.bfloat16
    params = {
        name: tree if name == "head" else jax.tree.map(lambda leaf: leaf.astype(low), tree)
        for name, tree in variables["params"].items()
    }
    returned = module.apply({**variables, "params": params}, inputs.astype(low), **options)
    if isinstance(returned, tuple):
        return returned[0].astype(jnp.float32), *returned[1:]
    return returned.astype(jnp.float32)  # pyright: ignore[reportAttributeAccessIssue]


__all__ = ["Precision", "apply", "compute_precision"]
